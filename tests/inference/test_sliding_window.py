import logging

import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from torch import nn

from medseg.inference.engines.memory import EngineMemoryError
from medseg.inference.merger import Merger
from medseg.inference.predictor import MOST_HALVINGS, HeadMode, SlidingWindow, to_probabilities
from medseg.inference.settings import PredictSettings
from medseg.inference.splitter import plan_windows
from medseg.networks.unet import UNet, UNetSettings


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


# --- windows without brain ------------------------------------------------------------------------


class SeesItsWindow(nn.Module):
    """What it says of a voxel depends on all of its window, as with instance normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sums.append(float(images.abs().sum()))
        mean = images.mean(dim=tuple(range(1, images.ndim)), keepdim=True)
        return torch.cat([images - mean, 2 * images + mean], dim=1)


def head_in_a_corner() -> torch.Tensor:
    image = torch.zeros(1, 16, 16, 16)
    image[:, :6, :5, :7] = 1 + torch.rand(1, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    return image


CORNER = (slice(None), slice(6), slice(5), slice(7))


@pytest.mark.parametrize("mode", ["regions", "classes"])
def test_windows_without_brain_are_left_out_and_change_nothing_inside(mode: HeadMode) -> None:
    settings, image = PredictSettings(window=(8, 8, 8), overlap=0.5), head_in_a_corner()
    network = SeesItsWindow()
    found = SlidingWindow(network, mode=mode, settings=settings)(image)
    assert len(network.sums) < 27
    assert min(network.sums) > 0
    merger = Merger(image.shape[1:])
    for window in plan_windows((16, 16, 16), (8, 8, 8), overlap=0.5):
        merger.add(window, to_probabilities(network(image[None][(..., *window)]), mode=mode)[0])
    torch.testing.assert_close(found[CORNER], merger.merged()[CORNER], atol=1e-6, rtol=0)
    # Far from the head nothing was asked.
    assert found[-1, 12:, 12:, 12:].max() == 0
    assert (found[0, 12:, 12:, 12:] == (1 if mode == "classes" else 0)).all()


@pytest.mark.parametrize("mode", ["regions", "classes"])
def test_slices_without_brain_are_left_out_and_change_nothing_inside(mode: HeadMode) -> None:
    image, network = head_in_a_corner(), SeesItsWindow()
    settings = PredictSettings(slices_per_batch=3)
    found = SlidingWindow(network, mode=mode, dims=2, settings=settings)(image)
    assert len(network.sums) == 3
    inside = image[..., :7].permute(3, 0, 1, 2)
    expected = to_probabilities(SeesItsWindow()(inside), mode=mode).permute(1, 2, 3, 0)
    torch.testing.assert_close(found[..., :7], expected)
    assert (found[1, ..., 7:] == 0).all()
    assert (found[0, ..., 7:] == (1 if mode == "classes" else 0)).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_of_zeros_is_still_looked_at(dims: int) -> None:
    settings = PredictSettings(window=(4, 4, 4)[:dims], overlap=0.5)
    predictor = SlidingWindow(SeesItsWindow(), mode="regions", dims=dims, settings=settings)
    assert (predictor(torch.zeros(1, 8, 8, 8)) == 0.5).all()


def test_a_channel_that_is_missing_does_not_make_a_window_empty() -> None:
    image = torch.cat([torch.zeros(1, 8, 8, 8), torch.ones(1, 8, 8, 8)])
    settings = PredictSettings(window=(4, 4, 4), overlap=0.0)
    assert (SlidingWindow(lambda x: x, mode="regions", settings=settings)(image)[1] > 0.7).all()


# --- profiles -------------------------------------------------------------------------------------


def test_profiles_choose_the_overlap_and_an_own_one_wins() -> None:
    shape = (40, 20, 20)

    def overlap(**settings: object) -> float:
        chosen = PredictSettings(max_window_voxels=12_000, **settings)  # type: ignore[arg-type]
        return SlidingWindow(nn.Identity(), mode="regions", settings=chosen).plan(shape).overlap

    assert overlap(profile="fast") < 0.25 <= overlap(profile="default") <= 0.5
    assert overlap(profile="best") == 0.5
    assert overlap(profile="fast", overlap=0.4) == 0.4


def test_default_overlaps_as_much_as_costs_no_further_window() -> None:
    def plan(limit: int) -> float:
        settings = PredictSettings(max_window_voxels=limit)
        return (
            SlidingWindow(nn.Identity(), mode="regions", settings=settings).plan((40,) * 3).overlap
        )

    # Two windows of 27 cover 40 with half of overlap, of 23 with a quarter.
    assert (plan(27 * 1600), plan(23 * 1600)) == (0.5, 0.25)


# --- out of memory --------------------------------------------------------------------------------


class SmallGPU(nn.Module):
    """Holds a number of voxels at once, as a GPU does."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.holds = holds
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        if images[:, 0].numel() > self.holds:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return images


def test_out_of_memory_halves_windows_says_so_and_remembers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, image = SmallGPU(holds=20 * 10 * 5), torch.rand(1, 20, 20, 10)
    predictor = SlidingWindow(network, mode="regions")
    with caplog.at_level(logging.WARNING):
        found = predictor(image)
    torch.testing.assert_close(found, image.sigmoid())
    assert network.shapes[:3] == [(1, 1, 20, 20, 10), (1, 1, 10, 20, 10), (1, 1, 10, 10, 10)]
    assert [record.message.count("half") for record in caplog.records] == [1, 1]
    assert "(1, 1, 20, 20, 10)" in caplog.records[0].message
    network.shapes.clear()
    predictor(image)
    assert set(network.shapes) == {(1, 1, 10, 10, 10)}


def test_slices_are_halved_in_number_first() -> None:
    network, image = SmallGPU(holds=3 * 64), torch.rand(1, 8, 8, 12)
    settings = PredictSettings(slices_per_batch=12)
    found = SlidingWindow(network, mode="regions", dims=2, settings=settings)(image)
    torch.testing.assert_close(found, image.sigmoid())
    assert [shape[0] for shape in network.shapes[:3]] == [12, 6, 3]
    network.holds = 40
    torch.testing.assert_close(
        SlidingWindow(network, mode="regions", dims=2, settings=settings)(image), image.sigmoid()
    )


def test_a_gpu_that_holds_nothing_is_given_up_soon() -> None:
    network = SmallGPU(holds=0)
    with pytest.raises(EngineMemoryError, match="smaller windows"):
        SlidingWindow(network, mode="regions")(torch.rand(1, 32, 32, 32))
    assert len(network.shapes) == MOST_HALVINGS + 1


def test_other_errors_are_not_taken_for_memory() -> None:
    def network(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cuDNN is not in the mood")

    with pytest.raises(RuntimeError, match="mood"):
        SlidingWindow(network, mode="regions")(torch.rand(1, 4, 4, 4))


@pytest.mark.parametrize("shape", [(5, 4, 3), (9, 7, 1), (1, 9, 7), (1, 1, 1)])
def test_images_smaller_than_a_window_are_one_window(shape: tuple[int, int, int]) -> None:
    settings, image = PredictSettings(window=(64, 64, 64), overlap=0.5), torch.rand(2, *shape)
    network = UNet(UNetSettings(in_channels=2, out_channels=3, widths=(2, 3, 4), bias=True)).eval()
    found = SlidingWindow(network, mode="classes", settings=settings)(image)
    assert found.shape == (3, *shape)
    torch.testing.assert_close(found.sum(0), torch.ones(shape))
