"""What every test of the command line needs."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    """The command line owns the root logger; pytest wants it back."""
    root, log = logging.getLogger(), logging.getLogger("medseg")
    before, levels = list(root.handlers), (root.level, log.level)
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    log.setLevel(levels[1])
