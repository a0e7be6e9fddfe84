import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn

from medseg.inference.predictor import SlidingWindow
from medseg.inference.settings import PredictSettings


def test_windows_agree_with_monai_where_both_lie_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    image = torch.randn(1, 12, 12, 12)
    settings = PredictSettings(window=(8, 8, 8), overlap=0.5)
    ours = SlidingWindow(network, mode="regions", settings=settings)(image)
    with torch.no_grad():
        theirs = sliding_window_inference(
            image[None],
            roi_size=(8, 8, 8),
            sw_batch_size=1,
            predictor=lambda window: network(window).sigmoid(),
            overlap=0.5,
            mode="gaussian",
        )
    torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=0)  # type: ignore[index]


def test_an_image_that_fits_is_seen_once_and_whole() -> None:
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images

    SlidingWindow(network, mode="regions")(torch.rand(1, 20, 30, 10))
    assert seen == [(1, 1, 20, 30, 10)]


@pytest.mark.parametrize(("limit", "count"), [(1000, 1), (700, 2), (500, 3), (250, 9)])
def test_windows_are_no_more_than_the_memory_bound_asks_for(limit: int, count: int) -> None:
    calls = []

    def network(images: torch.Tensor) -> torch.Tensor:
        calls.append(images[0, 0].numel())
        return images

    settings = PredictSettings(max_window_voxels=limit, overlap=0.5)
    SlidingWindow(network, mode="regions", settings=settings)(torch.rand(1, 10, 10, 10))
    assert len(calls) == count
    assert max(calls) <= limit
