import numpy as np
import pytest

from medseg.calibration.temperature import (
    HeadMode,
    Stratum,
    fit_temperature,
    nll_nats,
    tempered,
)
from medseg.errors import DataError


def drawn(
    temperature: float, *, samples: int = 1, channels: int = 1, mode: HeadMode = "regions"
) -> Stratum:
    """Return logits that are too large by a known factor, and truths that follow the right ones."""
    rng = np.random.default_rng(0)
    # Samples that say much the same: of unrelated ones the mean would tell little.
    right = rng.normal(scale=2.0, size=(channels, 20_000))
    right = right + rng.normal(scale=0.5, size=(samples, channels, 20_000))
    chance = tempered(right.astype(np.float32), 1.0, mode)
    if mode == "regions":
        truth = rng.random(chance.shape) < chance
    else:
        edges, place = chance.cumsum(axis=0), rng.random(chance.shape[1])
        truth = (place < edges) & (place >= edges - chance)
    return Stratum((temperature * right).astype(np.float32), truth, truth.shape[1])


@pytest.mark.parametrize("known", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("samples", [1, 4])
def test_a_known_temperature_is_found(known: float, samples: int) -> None:
    assert fit_temperature([drawn(known, samples=samples)]) == pytest.approx(known, rel=0.06)


def test_classes_share_a_temperature() -> None:
    stratum = drawn(2.5, channels=3, mode="classes")
    assert stratum.truth.shape[0] == 2
    assert fit_temperature([stratum], mode="classes") == pytest.approx(2.5, rel=0.06)


def test_the_likelihood_is_better_at_the_temperature() -> None:
    stratum = [drawn(3.0)]
    fitted = fit_temperature(stratum)
    assert nll_nats(stratum, fitted) < nll_nats(stratum, 1.0)


def test_each_region_has_its_own() -> None:
    one, other = drawn(0.5), drawn(2.0)
    both = Stratum(
        np.concatenate([one.logits, other.logits], axis=1),
        np.concatenate([one.truth, other.truth]),
        one.voxels,
    )
    assert fit_temperature([both.of_region(0)]) == fit_temperature([one])
    assert fit_temperature([both.of_region(1)]) == fit_temperature([other])


def test_voxels_stand_for_as_many_as_they_were_drawn_from() -> None:
    whole = drawn(1.7)
    part = Stratum(whole.logits[:, :, :500], whole.truth[:, :500], 100)
    rest = Stratum(whole.logits[:, :, 500:], whole.truth[:, 500:], 900)
    expected = 0.1 * nll_nats([part], 1.2) + 0.9 * nll_nats([rest], 1.2)
    assert nll_nats([part, rest], 1.2) == pytest.approx(expected)


def test_a_region_that_no_case_has_is_refused() -> None:
    empty = Stratum(np.zeros((1, 1, 5), np.float32), np.zeros((1, 5), dtype=bool), 5)
    with pytest.raises(DataError, match="at least one has a voxel"):
        fit_temperature([empty, empty])
