"""Predictions held against the scan's own intensities."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from medseg.data.regions import RegionSettings
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError, DataError
from medseg.inference.intensity_prior import (
    IntensityPrior,
    RefinementSettings,
    fit_intensity_prior,
    nested,
    refinement_bytes,
)
from medseg.inference.refinement import (
    IntensityMixture,
    held_against,
    neighbour_sum,
    refined,
)

NAMES = ("core", "whole")
DEFINITION = {"core": (1, 4), "whole": (1, 2, 4)}
SHAPE = (14, 15, 13)
LOOKS = ((0.0, 0.0), (2.5, 0.0), (2.0, 3.0))


def places(shape: Sequence[int] = SHAPE) -> Tensor:
    axes = [torch.linspace(-1, 1, length) for length in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def scan(seed: int, *, brighter: float = 0.0, noise: float = 0.5) -> TrainingCase:
    """A ball in a ball in a brain, each with intensities of its own."""
    generator = torch.Generator().manual_seed(seed)
    middle = 0.2 * (torch.rand(3, generator=generator) - 0.5)
    away = (places() - middle[:, None, None, None]).square().sum(0).sqrt()
    brain, whole, core = places().square().sum(0) < 1.1, away < 0.6, away < 0.35
    tissue = whole.int() + core.int()
    means = torch.tensor(LOOKS) + brighter * (torch.arange(3) > 0)[:, None]
    image = means[tissue].movedim(-1, 0) + noise * torch.randn(2, *SHAPE, generator=generator)
    return TrainingCase(
        identifier=f"c{seed}",
        subject=f"s{seed}",
        image=image * brain,
        present=torch.ones(2, dtype=torch.bool),
        target=torch.stack([core & brain, whole & brain]).float(),
        known=torch.ones(2, dtype=torch.bool),
        brain=brain,
    )


def looks(**changes: object) -> IntensityPrior:
    chosen = RefinementSettings(**changes)  # type: ignore[arg-type]
    return fit_intensity_prior([scan(1), scan(2)], NAMES, DEFINITION, chosen=chosen)


def belief(case: TrainingCase) -> Tensor:
    """What a network might say, outer region first: the truth, and less surely what is around."""
    found = []
    for mask in (case.target[1] > 0.5, case.target[0] > 0.5):
        around = torch.from_numpy(ndimage.binary_dilation(mask.numpy()))
        found.append(0.05 + 0.6 * around.float() + 0.25 * mask.float())
    return torch.stack(found)


def mixture_of(
    case: TrainingCase, prior: IntensityPrior, *, double: bool = True
) -> IntensityMixture:
    chances = belief(case)[:, case.brain]
    edges = torch.cat([torch.ones_like(chances[:1]), chances, torch.zeros_like(chances[:1])])
    tissues = (edges[:-1] - edges[1:]).clamp(min=prior.settings.least_probability)
    dtype = torch.float64 if double else torch.float32
    return IntensityMixture(
        intensities=case.image[:, case.brain].T.to(dtype),
        log_prior=(tissues / tissues.sum(0)).log().to(dtype),
        inside=case.brain,
        prior=prior,
        channels=(0, 1),
    )


def log_gamma_of_wishart(degrees: Tensor, channels: int) -> Tensor:
    return torch.special.multigammaln(degrees / 2, channels)


def divergence_of_gaussians(found: IntensityMixture) -> Tensor:
    """KL of normal-Wishart distributions, after Bishop 2006, appendix B and section 10.2."""
    channels = found.mean.shape[1]
    before = torch.full_like(found.count, found.prior.settings.prior_voxels)
    degrees = torch.full_like(found.degrees, found.prior_degrees)
    scale, prior_scale = found.scatter.inverse(), found.prior_scatter.inverse()
    precision = found.degrees[:, None, None] * scale
    shift = (found.mean - found.prior_mean)[:, :, None]
    normal = 0.5 * (
        channels * (before / found.count - 1 - (before / found.count).log())
        + before * (shift.mT @ precision @ shift)[:, 0, 0]
    )
    steps = torch.arange(channels, dtype=torch.float64)
    log_precision = (
        torch.digamma((found.degrees[:, None] - steps) / 2).sum(1)
        + channels * math.log(2)
        + scale.logdet()
    )
    wishart = (
        0.5 * (found.degrees - degrees) * log_precision
        - 0.5 * found.degrees * channels
        + 0.5 * found.degrees * (prior_scale.inverse() @ scale).diagonal(dim1=1, dim2=2).sum(1)
        - 0.5 * found.degrees * (channels * math.log(2) + scale.logdet())
        - log_gamma_of_wishart(found.degrees, channels)
        + 0.5 * degrees * (channels * math.log(2) + prior_scale.logdet())
        + log_gamma_of_wishart(degrees, channels)
    )
    return (normal + wishart).sum()


def bound_nats(found: IntensityMixture) -> float:
    """The bound that each update is to raise, from its definition."""
    chosen, chances, parts = found.prior.settings, found.chances, found.parts
    weights = sum(
        kl_divergence(
            Dirichlet(found.alpha[found.tissues == t]),
            Dirichlet(found.prior_alpha[found.tissues == t]),
        )
        for t in range(len(chances))
    )
    places_of = found.inside.flatten().nonzero()[:, 0]
    pairs = 0.5 * (chances * neighbour_sum(chances, places_of, found.inside.shape)).sum()
    total = (
        (chances * found.log_prior).sum()
        - torch.special.xlogy(chances, chances).sum()
        + chosen.likelihood_power
        * (
            (parts * found.expected_log_likelihood()).sum()
            - torch.special.xlogy(parts, parts / chances[found.tissues]).sum()
        )
        + chosen.neighbour_nats * pairs
        - weights
        - divergence_of_gaussians(found)
    )
    return float(total)


@pytest.mark.parametrize("seed", [3, 4])
def test_each_update_raises_the_bound(seed: int) -> None:
    found = mixture_of(scan(seed, brighter=1.0), looks())
    bounds = [bound_nats(found)]
    for _ in range(6):
        found.update_gaussians()
        bounds.append(bound_nats(found))
        found.update_voxels()
        bounds.append(bound_nats(found))
    steps = np.diff(bounds)
    assert (steps > -1e-6 * abs(bounds[0])).all(), bounds
    assert bounds[-1] > bounds[0] + 10


def test_one_gaussian_a_tissue_is_that_of_scikit_learn() -> None:
    prior = looks(outside_components=1, components=1, likelihood_power=1.0, neighbour_nats=0.0)
    case = scan(5)
    found = mixture_of(case, prior)
    crisp = torch.stack([case.target.sum(0)[case.brain] == t for t in range(3)]).double()
    found.parts = crisp
    found.update_gaussians()
    for tissue, mask in enumerate(crisp.bool()):
        oracle = BayesianGaussianMixture(
            n_components=1,
            mean_precision_prior=prior.settings.prior_voxels,
            mean_prior=found.prior_mean[tissue].numpy(),
            degrees_of_freedom_prior=found.prior_degrees,
            covariance_prior=found.prior_scatter[tissue].numpy(),
            reg_covar=0.0,
        ).fit(found.intensities[mask].numpy())
        np.testing.assert_allclose(found.mean[tissue], oracle.means_[0])
        np.testing.assert_allclose(found.degrees[tissue], oracle.degrees_of_freedom_[0])
        covariance = found.scatter[tissue] / found.degrees[tissue]
        np.testing.assert_allclose(covariance, oracle.covariances_[0], rtol=1e-9)


def test_a_scan_brighter_than_any_seen_is_mended() -> None:
    case = scan(6, brighter=1.5)
    said = belief(case)
    found = refined(said, case.image, case.brain, looks(components=1))
    for row, truth in enumerate((case.target[1] > 0.5, case.target[0] > 0.5)):
        before, after = (
            2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())
            for mask in ((said[row] > 0.5) & case.brain, (found[row] > 0.5) & case.brain)
        )
        assert before < 0.8 < 0.95 < after


def test_inner_regions_lie_in_outer_ones_and_nothing_changes_outside_the_brain() -> None:
    case = scan(7)
    said = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = refined(said, case.image, case.brain, looks())
    assert torch.equal(found[:, ~case.brain], said[:, ~case.brain])
    assert bool((found[1] <= found[0] + 1e-6)[case.brain].all())
    assert bool(((found >= 0) & (found <= 1)).all())


def test_without_likelihood_and_neighbours_the_network_has_the_word() -> None:
    case = scan(8)
    outer = 0.05 + 0.9 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    said = torch.stack([outer, 0.5 * outer])
    found = refined(said, case.image, case.brain, looks(likelihood_power=0.0, neighbour_nats=0.0))
    torch.testing.assert_close(found, said, rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    scale=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    shift=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_other_units_of_intensity_change_nothing(
    scale: tuple[float, float], shift: tuple[float, float]
) -> None:
    case, prior = scan(9), looks(iterations=4)
    factor, offset = np.array(scale), np.array(shift)
    other = replace(
        prior,
        means=tuple(tuple(factor * np.array(mean) + offset) for mean in prior.means),
        covariances=tuple(
            tuple(map(tuple, factor[:, None] * np.array(one) * factor)) for one in prior.covariances
        ),
    )
    image = case.image * torch.tensor(scale)[:, None, None, None]
    image = (image + torch.tensor(shift)[:, None, None, None]) * case.brain
    said = belief(case)
    one, two = refined(said, case.image, case.brain, prior), refined(said, image, case.brain, other)
    assert float((one - two).abs().mean()) < 1e-3


def test_a_missing_channel_is_not_looked_at() -> None:
    case, prior = scan(10), looks()
    hidden = case.image.clone()
    hidden[1] = 0
    alone = replace(
        prior,
        means=tuple(mean[:1] for mean in prior.means),
        covariances=tuple((one[0][:1],) for one in prior.covariances),
    )
    said = belief(case)
    found = refined(said, hidden, case.brain, prior)
    assert torch.equal(found, refined(said, case.image[:1], case.brain, alone))
    assert torch.equal(said, refined(said, torch.zeros_like(case.image), case.brain, prior))


def test_neighbours_are_summed_as_scipy_does() -> None:
    inside = places().square().sum(0) < 1
    chances = torch.rand(3, int(inside.sum()), generator=torch.Generator().manual_seed(0))
    cross = ndimage.generate_binary_structure(3, 1).astype(float)
    cross[1, 1, 1] = 0
    found = neighbour_sum(chances, inside.flatten().nonzero()[:, 0], inside.shape)
    for one, chance in zip(found, chances, strict=True):
        volume = np.zeros(inside.shape)
        volume[inside.numpy()] = chance
        wanted = ndimage.convolve(volume, cross, mode="constant")[inside.numpy()]
        np.testing.assert_allclose(one, wanted, rtol=1e-5)


@given(st.permutations(["whole", "core", "enhancing"]))
def test_regions_are_ordered_by_what_they_hold(names: list[str]) -> None:
    labels = {"whole": (1, 2, 3, 4), "core": (1, 3, 4), "enhancing": (4,)}
    assert nested({name: labels[name] for name in names}) == ("whole", "core", "enhancing")


def test_what_cannot_be_refined_is_refused() -> None:
    case = scan(11)
    for definition in ({"core": (1,), "whole": (2,)}, {"core": (1, 2), "whole": (1, 2)}):
        with pytest.raises(ConfigError, match="lie in each other"):
            fit_intensity_prior([case], NAMES, definition)
    with pytest.raises(ConfigError, match="classes"):
        fit_intensity_prior([replace(case, has_background=True)], NAMES, DEFINITION)
    empty = replace(case, target=torch.zeros_like(case.target))
    for cases in ([], [empty], [replace(case, known=torch.tensor([True, False]))]):
        with pytest.raises(DataError, match="20 labelled voxels of each tissue"):
            fit_intensity_prior(cases, NAMES, DEFINITION)


@pytest.mark.parametrize(("lost", "kept"), [(0, "whole"), (1, "core")])
def test_a_region_that_no_case_shows_is_left_to_the_network(lost: int, kept: str) -> None:
    case = scan(11)
    target = case.target.clone()
    # No core at all, or nothing of the whole beside it.
    target[lost] = 0 if lost == 0 else target[0]
    found = fit_intensity_prior([replace(case, target=target)], NAMES, DEFINITION)
    assert found.regions == (kept,)
    assert set(found.tissues) == {0, 1}
    said = belief(case).flip(0)
    (mixed,) = held_against([said], case.image, case.brain, NAMES, found)
    untouched = 1 - NAMES.index(kept)
    assert torch.equal(mixed[untouched], said[untouched])
    assert not torch.equal(mixed, said)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": (1.0,)},
        {"regions": ("whole",)},
        {"means": ((0.0,),) * 10},
        {"covariances": (((1.0,), (1.0,)),) * 10},
    ],
)
def test_a_prior_that_does_not_fit_together_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        replace(looks(), **change)


def test_a_model_of_other_regions_or_channels_is_refused() -> None:
    looks().require_fit(RegionSettings(names=NAMES), 2)
    for regions, channels in (
        (RegionSettings(names=("whole",)), 2),
        (RegionSettings(mode="classes", names=NAMES), 2),
        (RegionSettings(names=NAMES), 3),
    ):
        with pytest.raises(ValueError, match="intensities are of"):
            looks().require_fit(regions, channels)


def test_single_precision_is_enough_for_a_spike_of_equal_voxels() -> None:
    case, prior = scan(15), looks()
    case.image[:, ::3] = 4.0
    one, two = (mixture_of(case, prior, double=double).fit() for double in (False, True))
    assert float((one - two).abs().max()) < 0.02


def test_the_prior_is_what_labelled_scans_look_like() -> None:
    cases = [scan(1), replace(scan(2), present=torch.tensor([True, False]))]
    chosen = RefinementSettings(outside_components=1, components=1)
    found = fit_intensity_prior(cases, NAMES, DEFINITION, chosen=chosen)
    assert found.regions == ("whole", "core")
    assert found.tissues == (0, 1, 2)
    tissue = cases[0].target.sum(0)[cases[0].brain]
    for index in range(3):
        seen = cases[0].image[:, cases[0].brain][:, tissue == index].double().numpy()
        np.testing.assert_allclose(found.means[index], seen.mean(1), rtol=1e-6)
        wanted = np.cov(seen, bias=True) + 0.02 * np.eye(2)
        np.testing.assert_allclose(found.covariances[index], wanted, rtol=1e-5)


def test_samples_are_mixed_with_one_belief() -> None:
    case, prior = scan(12), looks(share=0.25)
    generator = torch.Generator().manual_seed(0)
    said = belief(case).flip(0)  # in the order of the names: core, whole
    drawn = [
        torch.cat([(said + 0.04 * torch.rand(said.shape, generator=generator)), said[:1] * 0 + k])
        for k in range(3)
    ]
    assert list(held_against(drawn, case.image, case.brain, NAMES, None)) == drawn
    found = list(held_against(drawn, case.image, case.brain, NAMES, prior))
    mean = torch.stack([one.half()[[1, 0]].float() for one in drawn]).mean(0)
    wanted = refined(mean, case.image, case.brain, prior).flip(0)
    for one, before in zip(found, drawn, strict=True):
        torch.testing.assert_close(one[:2], 0.75 * before[:2] + 0.25 * wanted, atol=1e-3, rtol=1e-3)
        assert torch.equal(one[2], before[2]), "what is no region is left alone"
    unmoved = replace(prior, settings=replace(prior.settings, share=0.0))
    for one, before in zip(
        held_against(drawn, case.image, None, NAMES, unmoved), drawn, strict=True
    ):
        torch.testing.assert_close(one, before, atol=1e-3, rtol=1e-3)


def test_a_scan_without_a_lesion_stays_without() -> None:
    case = scan(14)
    nothing = torch.full((2, *SHAPE), 1e-4)
    healthy = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * case.brain
    for image in (healthy, case.image):
        (found,) = held_against([nothing], image, case.brain, NAMES, looks())
        assert not bool((found > 0.5).any())


def test_what_it_takes_grows_with_all_that_it_holds() -> None:
    case, prior = scan(13), looks()
    assert refinement_bytes(None, case.image, outputs=2, samples=9) == 0
    one = refinement_bytes(prior, case.image, outputs=2, samples=1)
    more = refinement_bytes(prior, case.image, outputs=2, samples=9)
    assert more - one == 8 * 2 * 2 * case.brain.numel(), "half precision takes two bytes"
    assert one > 4 * len(prior.tissues) * int(case.brain.sum())
