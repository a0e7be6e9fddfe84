"""A network is shown as much at once as it was shown while it was trained."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.errors import MedsegError
from medseg.inference.compute import middle_of
from medseg.inference.model import Model, ModelSpec, build_network
from medseg.inference.plan import plan_prediction, predict_image
from medseg.inference.posterior import Head, predict_prepared, sample_probabilities
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings

REGIONS = RegionSettings(names=("core", "whole"))
SPEC = ModelSpec(
    architecture=UNetSettings(in_channels=2, out_channels=2, widths=(3, 5), bias=True),
    channels=("flair", "t1c"),
    regions=REGIONS,
    region_definition={"core": (1,), "whole": (1, 2)},
    preprocess=PreprocessSettings(),
    patch=(6, 8, 6),
    method="pr",
)
IMAGE = torch.randn(2, 12, 8, 10, generator=torch.Generator().manual_seed(0))


class Seen(nn.Module):
    """Says nothing, and remembers the shapes it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(image.shape[2:]))
        return image * 0.0


def shapes(head: Head, image: torch.Tensor = IMAGE, **asked: object) -> list[tuple[int, ...]]:
    network = Seen()
    settings = PredictSettings(**asked)  # type: ignore[arg-type]
    assert len(list(sample_probabilities(network, image, head=head, settings=settings))) == 1
    return network.shapes


def test_windows_are_of_the_size_of_the_training() -> None:
    assert set(shapes(Head(REGIONS))) == {(12, 8, 10)}
    assert set(shapes(Head(REGIONS, window=(6, 8, 6)))) == {(6, 8, 6)}
    # A user who names windows has them.
    assert set(shapes(Head(REGIONS, window=(6, 8, 6)), window=(12, 4, 10))) == {(12, 4, 10)}
    assert set(shapes(Head(REGIONS, window=(6, 8, 6)), max_window_voxels=10**6)) == {(12, 8, 10)}
    assert set(shapes(Head(REGIONS, window=(6, 8, 6)), windows="largest")) == {(12, 8, 10)}


@pytest.mark.parametrize(("profile", "count"), [("fast", 9), ("default", 16), ("best", 25)])
def test_profiles_differ_in_overlap(profile: str, count: int) -> None:
    head, image = Head(REGIONS, window=(8, 8, 8)), torch.ones(2, 21, 8, 21)
    assert len(shapes(head, image, profile=profile)) == count


@pytest.mark.parametrize(("patch", "window"), [((6, 8, 6), (6, 8, 6)), (None, (12, 8, 10))])
def test_a_model_plans_what_the_network_then_sees(patch: object, window: object) -> None:
    spec = replace(SPEC, patch=patch)  # type: ignore[arg-type]
    network, seen = build_network(spec).eval(), set()
    network.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape[2:])))
    model, eager = Model(network, spec), PredictSettings(engine="eager")
    assert plan_prediction(model, IMAGE, settings=eager).window == window
    assert len(list(predict_image(model, IMAGE, settings=eager))) == 1
    assert seen == {window}


def test_a_network_of_slices_sees_parts_of_them() -> None:
    architecture = replace(SPEC.architecture, dims=2)
    spec = replace(SPEC, architecture=architecture, patch=(6, 8))
    network, seen = build_network(spec).eval(), set()
    network.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape[2:])))
    (found,) = predict_image(Model(network, spec), IMAGE, settings=PredictSettings(engine="eager"))
    assert found.shape == (2, 12, 8, 10)
    assert seen == {(6, 8)}


def test_engines_are_compared_on_what_they_will_be_shown() -> None:
    images = torch.arange(2.0 * 9 * 5 * 7).view(1, 2, 9, 5, 7)
    assert torch.equal(middle_of(images, (3, 9, 4)), images[..., 3:6, :, 1:5])
    assert torch.equal(middle_of(images, None), images)


def test_a_patch_has_the_axes_of_the_network() -> None:
    with pytest.raises((MedsegError, ValueError), match="each of 3 axes"):
        replace(SPEC, patch=(6, 8))


@pytest.mark.parametrize("mode", ["regions", "classes"])
def test_a_margin_of_nothing_changes_nothing(mode: str) -> None:
    regions = RegionSettings(mode=mode, names=("core", "whole"))  # type: ignore[arg-type]
    architecture = replace(SPEC.architecture, out_channels=regions.channels)
    network = build_network(replace(SPEC, architecture=architecture, regions=regions)).eval()
    wide = nn.functional.pad(IMAGE, (3, 2, 1, 4, 5, 0))
    inner = (slice(None), slice(5, 17), slice(1, 9), slice(3, 13))
    head = Head(regions)
    alone, framed = (predict_prepared(network, image, head=head) for image in (IMAGE, wide))
    torch.testing.assert_close(framed.statistics.probability[inner], alone.statistics.probability)
    outside = framed.statistics.probability.clone()
    outside[inner] = 0.0
    assert not outside.any()
    assert int(framed.mask.sum()) == int(alone.mask.sum())
