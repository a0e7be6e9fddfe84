"""A small cohort on disk, looked at once for all tests of the page."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.explore import Cohort, ExploreSettings, explore_scans
from medseg.explore.items import items_of_folder

SHAPE = (24, 26, 20)
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])


def write_case(
    folder: Path, *, seed: int, noise: float = 1.0, t1: bool = True, lesion: bool = True
) -> Path:
    """Write a head of ellipsoids with a lesion, its mask, and one or two modalities."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    size = rng.uniform(0.75, 0.9, 3)[:, None, None, None]
    brain = ((places / size) ** 2).sum(0) < 1
    core = ((places / (0.6 * size)) ** 2).sum(0) < 1
    centre = rng.uniform(-0.3, 0.3, 3)[:, None, None, None]
    radius = rng.uniform(0.15, 0.3)
    mask = (((places - centre) / radius) ** 2).sum(0) < 1
    image = 100.0 + 40 * core + 60 * mask * lesion + noise * rng.normal(0, 4, SHAPE)
    save(folder / "flair.nii.gz", np.where(brain, image, 0).astype(np.float32))
    if t1:
        other = np.where(brain, 200 - image + rng.normal(0, 4, SHAPE), 0)
        save(folder / "t1.nii.gz", other.astype(np.float32))
    if lesion:
        save(folder / "mask.nii.gz", (mask & brain).astype(np.uint8))
    return folder


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Path]:
    return write_case


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return sixteen scans of two sites, one far too noisy, and one that cannot be read."""
    root = tmp_path_factory.mktemp("scans")
    for i in range(16):
        site = "north" if i % 2 else "south"
        write_case(root / site / f"Jane_Doe_{i:02d}", seed=i, t1=i != 3)
    write_case(root / "north" / "Noisy_Doe", seed=20, noise=12.0)
    broken = root / "south" / "Broken_Doe" / "flair.nii.gz"
    broken.parent.mkdir()
    broken.write_bytes(b"no scan")
    return root


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def cohort(scans: Path, out: Path) -> Cohort:
    return explore_scans(
        items_of_folder(scans), out=out, title="Two sites", settings=ExploreSettings(seed=1)
    )
