"""The table of limits widens what it says it widens, and bounds what its choices can reach."""

import pytest
import torch

from medseg.seeding import torch_generator
from medseg.variational.convert import to_variational, variational_layers
from medseg.variational.sampling import sampled_weights
from medseg.variational.settings import VariationalSettings
from tools import limits_table


def network(cap: float | None = 0.3) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = VariationalSettings(relative_std=0.1, max_relative_std=cap)
    return to_variational(torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3)), settings=settings)


def test_a_width_multiplies_every_standard_deviation_beyond_the_cap() -> None:
    before = network()
    wide = limits_table.widened(before, 8.0)
    for name, layer in variational_layers(wide).items():
        first = variational_layers(before)[name].posterior
        torch.testing.assert_close(layer.posterior.std, 8.0 * first.std)
        torch.testing.assert_close(layer.posterior.mean, first.mean)


def test_no_width_is_the_mean_weights() -> None:
    image, before = torch.ones(1, 1, 4, 4, 4), network()
    none = limits_table.widened(before, 0.0)
    assert not variational_layers(none)
    torch.testing.assert_close(none(image), before.eval()(image))
    with sampled_weights(before, torch_generator(0, "a")):
        assert not torch.equal(before(image), none(image))


def row(
    method: str, share: float, width: float, subject: str, dsc: float, nll: float
) -> dict[str, str]:
    given = {"method": method, "share": share, "width": width, "subject": subject, "dsc": dsc}
    return {key: str(value) for key, value in {**given, "nll_nats": nll}.items()} | {
        "case": subject,
        "region": "core",
        "subset": "0",
    }


ROWS = [
    row("pr", 0.0, 0.0, "a", 0.70, 0.2),
    row("pr", 0.0, 0.0, "b", 0.80, 0.2),
    row("pr", 0.5, 0.0, "a", 0.90, 0.3),
    row("pr", 0.5, 0.0, "b", 0.70, 0.3),
    row("gaussian", 0.5, 1.0, "a", 0.80, 0.2),
    row("gaussian", 0.5, 1.0, "b", 0.70, 0.1),
    row("gaussian", 0.75, 2.0, "a", 0.92, 0.4),
    row("gaussian", 0.75, 2.0, "b", 0.74, 0.4),
]


def test_the_best_of_each_kind_are_compared_case_by_case() -> None:
    lines = limits_table.best(ROWS).splitlines()
    assert lines[0].endswith(
        "DSC: variational (0.75 of the way back, 2 times as wide) less plain (0.5): "
        "+0.0300 [+0.0200, +0.0400]"
    )
    assert "NLL: variational (0.5 of the way back, 1 times as wide) less plain (0)" in lines[1]
    assert lines[1].endswith("-0.0500 [-0.1000, +0.0000]")


def test_two_scans_of_a_person_are_held_against_themselves() -> None:
    scans = [
        row(method, 0.0, width, "a", dsc, 0.2) | {"case": case}
        for method, width in (("pr", 0.0), ("gaussian", 1.0))
        for case, dsc in (("a1", 0.9), ("a2", 0.5))
    ]
    assert "+0.0000" in limits_table.best(scans).splitlines()[0]


def test_the_table_has_each_choice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_table, "SHARES", (0.5,))
    rows = [one for one in ROWS if one["share"] == "0.5"]
    assert limits_table.table(rows).splitlines()[2:] == [
        "| networks | posterior | 0.5 of the way back |",
        "| --- | --- | --- |",
        "| plain | none | 0.8000, 0.3000 |",
        "| variational | 1 times as wide | 0.7500, 0.1500 |",
    ]
