"""Small networks for the tests of engines."""

import pytest

from medseg.networks.unet import UNet, UNetSettings
from medseg.seeding import seeded_torch


@pytest.fixture
def network() -> UNet:
    with seeded_torch(0, "small network"):
        return UNet(UNetSettings(dims=3, in_channels=2, out_channels=2, widths=(4, 6))).eval()
