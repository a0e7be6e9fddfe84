"""How far back to the source ``auto`` goes, and what it looks at to tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medseg.training import choice as choice_module
from medseg.training.choice import SHARES, Choice, chosen_method
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


def test_every_share_is_tried(chosen):
    assert chosen.method.method == "gaussian"
    assert [row["share"] for row in chosen.rows] == list(SHARES)


def test_without_a_lesion_there_is_nothing_to_choose_by(toy, source, cases, monkeypatch):
    monkeypatch.setattr(choice_module, "learn", None)  # and nothing to train for
    empty = [replace(case, target=torch.zeros_like(case.target)) for case in cases]
    found = chosen_method(empty, toy.plan(steps=2), AUTO, source=source)
    assert found == Choice(AUTO.resolved(0.5))


def test_a_subject_is_left_out_with_all_its_scans(toy, source, cases, monkeypatch):
    kept = []

    def learned(some, *_, **__):
        kept.append({case.subject for case in some})
        return Sure(), None

    monkeypatch.setattr(choice_module, "learn", learned)
    monkeypatch.setattr(choice_module, "after_training", lambda network, *_, **__: network)
    chosen_method(cases, toy.plan(steps=2), AUTO, source=source)
    everyone = {case.subject for case in cases}
    assert len(kept) == 2
    assert set.union(*kept) == everyone
    assert not set.intersection(*kept)


def test_the_choice_can_be_made_again(toy, source, cases, chosen):
    assert chosen_method(cases, toy.plan(steps=2), AUTO, source=source) == chosen


def test_what_is_far_from_the_masks_is_moved_back_to_where_it_was_near(
    toy, source, cases, monkeypatch
):
    """A training that turned everything over is not believed."""
    monkeypatch.setattr(choice_module, "learn", lambda *_, **__: (Sure(), None))
    monkeypatch.setattr(
        choice_module,
        "after_training",
        lambda network, plan, method, *, source: Sure(16.0 * method.shares_back[0] - 8.0),
    )
    told = [replace(c, image=torch.where(c.target > 0.5, 1.0, -1.0)) for c in cases]
    found = chosen_method(told, toy.plan(steps=2), AUTO, source=source)
    assert found.method.shares_back[0] > 0.5
    nats = [row["nll_nats"] for row in found.rows]
    assert nats == sorted(nats, reverse=True)


class Sure(nn.Module):
    """Has logits as large as it is sure, with the signs of the image."""

    def __init__(self, sureness=8.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(sureness))

    def forward(self, image):
        return self.weight * image


@pytest.mark.parametrize("wrong", [0.02, 0.2])
def test_the_temperature_is_the_likeliest_on_cases_left_out(toy, source, cases, monkeypatch, wrong):
    generator, turned, images = torch.Generator().manual_seed(0), [], []
    for case in cases:
        turned.append(torch.rand(case.target.shape, generator=generator) < wrong)
        images.append(torch.where((case.target > 0.5) ^ turned[-1], 1.0, -1.0))
    told = [replace(case, image=image) for case, image in zip(cases, images, strict=True)]
    monkeypatch.setattr(choice_module, "learn", lambda *_, **__: (Sure(), None))
    monkeypatch.setattr(choice_module, "after_training", lambda network, *_, **__: network)
    found = chosen_method(told, toy.plan(steps=2), AUTO, source=source)
    # The likeliest probability of being right is the share that is right.
    rate = torch.cat([one.flatten() for one in turned]).float().mean()
    assert found.temperature == pytest.approx(8.0 / float(torch.logit(1.0 - rate)), rel=1e-3)


def test_a_single_subject_goes_half_of_the_way(toy, source, cases):
    found = chosen_method(cases[:1], toy.plan(steps=2), AUTO, source=source)
    assert found == Choice(AUTO.resolved(0.5))


def test_other_methods_stay_what_they_are(toy, source, cases):
    method = MethodSettings(method="dwp")
    assert chosen_method(cases, toy.plan(steps=2), method, source=source) == Choice(method)


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
