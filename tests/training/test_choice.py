"""How far back to the source ``auto`` goes, and what it looks at to tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from medseg.training.choice import SHARES, best_share, chosen_method
from medseg.training.method import MethodSettings
from medseg.training.transfer import finetune
from medseg.variational.convert import to_deterministic

AUTO = MethodSettings(method="auto", folds=2)


@pytest.fixture(scope="module")
def source(toy):
    return toy.source()


@pytest.fixture(scope="module")
def cases(toy):
    first, *others = toy.cases()
    # One person twice: both scans are left out together.
    return [first, *others, replace(first, identifier="again")]


@pytest.fixture(scope="module")
def chosen(toy, source, cases):
    return chosen_method(cases, toy.plan(steps=2), AUTO, source=source)


def test_every_share_is_tried_on_every_case_left_out(chosen, cases):
    method, rows = chosen
    assert method.method == "gaussian"
    assert method.share_back == best_share(rows)
    for share in SHARES:
        seen = [r["case"] for r in rows if r["share"] == share]
        assert sorted(seen) == sorted(case.identifier for case in cases)


def table(**dsc):
    """Return rows of shares 0, 0.5 and 1, a list of DSC each."""
    names = {"none": 0.0, "half": 0.5, "whole": 1.0}
    return [
        {"case": f"c{number}", "share": names[name], "dsc": value}
        for name, values in dsc.items()
        for number, value in enumerate(values)
    ]


def test_the_way_back_must_gain_more_than_its_standard_error():
    clear = table(none=[0.5, 0.6, 0.7], half=[0.6, 0.7, 0.8], whole=[0.7, 0.8, 0.91])
    assert best_share(clear) == 1.0
    # A gain of .1 with a standard error of .2 is chance.
    unclear = table(none=[0.5, 0.6, 0.7], half=[0.5, 0.6, 0.7], whole=[1.0, 0.5, 0.6])
    assert best_share(unclear) == 0.0
    worse = table(none=[0.5, 0.6], half=[0.4, 0.5], whole=[0.3, 0.4])
    assert best_share(worse) == 0.0
    level = table(none=[0.5, 0.6], half=[0.5, 0.6], whole=[0.5, 0.6])
    assert best_share(level) == 0.0


def test_a_subject_is_left_out_with_all_its_scans(chosen, cases):
    _, rows = chosen
    fold = {row["case"]: row["fold"] for row in rows}
    assert fold["again"] == fold[cases[0].identifier]
    assert set(fold.values()) == {0, 1}


def test_it_is_decided_by_the_training_cases_alone(toy, source, cases, chosen):
    assert chosen_method(cases, toy.plan(steps=2), AUTO, source=source) == chosen


def test_a_single_subject_goes_half_of_the_way(toy, source, cases):
    method, rows = chosen_method(cases[:1], toy.plan(steps=2), AUTO, source=source)
    assert (method.share_back, rows) == (0.5, [])


def test_other_methods_stay_what_they_are(toy, source, cases):
    method = MethodSettings(method="dwp")
    assert chosen_method(cases, toy.plan(steps=2), method, source=source) == (method, [])


def test_the_whole_way_back_is_the_source_and_none_is_the_posterior(toy, source, cases):
    """The means, that is: the deviations go back to where they started."""
    found = {
        share: finetune(cases, toy.plan(steps=3), AUTO.resolved(share), source=source)[0]
        for share in (0.0, 0.5, 1.0)
    }
    plain, _ = finetune(cases, toy.plan(steps=3), MethodSettings(method="gaussian"), source=source)
    given = source.network.state_dict()
    tuned = to_deterministic(plain).state_dict()
    for share, network in found.items():
        for name, value in to_deterministic(network).state_dict().items():
            wanted = torch.lerp(tuned[name], given[name], share)
            torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["ri", "resampled", "swag", "auto"])
def test_there_is_no_way_back_for_what_did_not_come_from_there(method):
    with pytest.raises(ValidationError, match="wise_share"):
        MethodSettings(method=method, wise_share=0.5)
