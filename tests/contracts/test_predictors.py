"""The law of a predictor, over every way there is to run a network."""

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, ModelError, ShapeError
from medseg.inference.predictor import SlidingWindow, to_probabilities
from medseg.inference.settings import PredictSettings

SHAPE = (13, 9, 11)
WHOLE = PredictSettings()
BLOCKS = PredictSettings(window=(6, 5, 4), overlap=0.5)
BUDGET = PredictSettings(max_window_voxels=150, overlap=0.25)
FAST = PredictSettings(max_window_voxels=150, profile="fast")
SLICES = PredictSettings(slices_per_batch=4)
SLICE_BLOCKS = PredictSettings(window=(6, 4), overlap=0.5, slices_per_batch=3)

WAYS = {
    "whole volume": (3, WHOLE),
    "3D windows": (3, BLOCKS),
    "3D windows from a memory bound": (3, BUDGET),
    "3D windows with the least overlap": (3, FAST),
    "whole slices": (2, SLICES),
    "windows of slices": (2, SLICE_BLOCKS),
}


class Constant(nn.Module):
    """The same logits for every voxel, whatever the image."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.tensor([0.3, -1.2, 2.0]).reshape(1, 3, *[1] * (images.ndim - 2))
        return logits.expand(images.shape[0], 3, *images.shape[2:])


class PerVoxel(nn.Module):
    """Looks at single voxels only, so cutting must not change anything."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0], 2 * images[:, 1], images[:, 0] - images[:, 1]], dim=1)


def test_every_way_is_seen() -> None:
    assert len(WAYS) == 6
    assert {dims for dims, _ in WAYS.values()} == {2, 3}


@pytest.mark.parametrize("mode", ["regions", "classes"])
@pytest.mark.parametrize(("dims", "settings"), WAYS.values(), ids=WAYS.keys())
class TestPredictor:
    def test_constant_network_gives_constant_volume(self, dims, settings, mode) -> None:
        predictor = SlidingWindow(Constant(), mode=mode, dims=dims, settings=settings)
        probabilities = predictor(torch.rand(2, *SHAPE))
        expected = to_probabilities(torch.tensor([[0.3, -1.2, 2.0]]), mode=mode)[0]
        assert probabilities.dtype == torch.float32
        assert probabilities.shape == (3, *SHAPE)
        torch.testing.assert_close(
            probabilities, expected.reshape(3, 1, 1, 1).expand(3, *SHAPE), atol=1e-6, rtol=0
        )

    def test_cutting_changes_nothing_for_a_network_of_single_voxels(
        self, dims, settings, mode
    ) -> None:
        image = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
        predictor = SlidingWindow(PerVoxel(), mode=mode, dims=dims, settings=settings)
        expected = to_probabilities(PerVoxel()(image[None]), mode=mode)[0]
        torch.testing.assert_close(predictor(image), expected, atol=1e-6, rtol=0)

    def test_classes_sum_to_one_and_all_are_probabilities(self, dims, settings, mode) -> None:
        torch.manual_seed(0)
        layer = nn.Conv2d if dims == 2 else nn.Conv3d
        predictor = SlidingWindow(
            layer(2, 3, 3, padding=1), mode=mode, dims=dims, settings=settings
        )
        probabilities = predictor(3 * torch.randn(2, *SHAPE))
        assert probabilities.min() >= 0
        assert probabilities.max() <= 1 + 1e-6
        if mode == "classes":
            torch.testing.assert_close(probabilities.sum(0), torch.ones(SHAPE), atol=1e-5, rtol=0)

    def test_same_image_gives_same_probabilities(self, dims, settings, mode) -> None:
        image = torch.rand(2, *SHAPE)
        predictor = SlidingWindow(PerVoxel(), mode=mode, dims=dims, settings=settings)
        assert torch.equal(predictor(image), predictor(image))

    def test_no_window_and_no_gradient_is_left_behind(self, dims, settings, mode) -> None:
        predictor = SlidingWindow(PerVoxel(), mode=mode, dims=dims, settings=settings)
        assert not predictor(torch.rand(2, *SHAPE, requires_grad=True)).requires_grad


def test_slices_are_axial_and_in_order() -> None:
    class SliceMean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[2:])

    image = torch.arange(1.0, 6.0).expand(1, 3, 4, 5)
    predictor = SlidingWindow(SliceMean(), mode="regions", dims=2, settings=SLICES)
    torch.testing.assert_close(predictor(image)[0, 0, 0], torch.arange(1.0, 6.0).sigmoid())


def test_temperature_softens() -> None:
    plain = SlidingWindow(Constant(), mode="regions")(torch.rand(2, *SHAPE))
    soft = SlidingWindow(Constant(), mode="regions", temperature=2.0)(torch.rand(2, *SHAPE))
    torch.testing.assert_close(soft.logit(), plain.logit() / 2)


def test_bf16_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 3, 3, padding=1)
    image = torch.randn(2, 6, 6, 6)
    exact = SlidingWindow(conv, mode="regions")(image)
    reduced = SlidingWindow(conv, mode="regions", dtype=torch.bfloat16)(image)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, exact, atol=0.02, rtol=0)


def test_a_window_for_the_wrong_number_of_axes_is_refused() -> None:
    predictor = SlidingWindow(PerVoxel(), mode="regions", dims=2, settings=BLOCKS)
    with pytest.raises(ConfigError, match="one positive length per axis"):
        predictor(torch.rand(2, *SHAPE))


def test_a_network_that_changes_the_grid_is_refused() -> None:
    predictor = SlidingWindow(nn.Conv3d(2, 3, 3), mode="regions")
    with pytest.raises(ShapeError, match="keeps the grid"):
        predictor(torch.rand(2, *SHAPE))


def test_nan_is_refused() -> None:
    predictor = SlidingWindow(PerVoxel(), mode="regions")
    with pytest.raises(ModelError, match="NaN"):
        predictor(torch.full((2, *SHAPE), float("nan")))


@pytest.mark.parametrize("shape", [(2, 5, 5), (1, 2, 5, 5, 5), (2, 0, 5, 5)])
def test_images_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="c, x, y, z"):
        SlidingWindow(PerVoxel(), mode="regions")(torch.zeros(shape))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 and 1"):
        SlidingWindow(PerVoxel(), mode="regions", dims=4)
