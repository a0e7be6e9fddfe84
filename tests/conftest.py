"""What every test may use."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "medseg",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("medseg")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Workers run side by side: one thread each keeps them from fighting over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans beside the checkout; see the data section of README.md for where to get them."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real development scans are not at {SHARED_DATA}")
    return SHARED_DATA
