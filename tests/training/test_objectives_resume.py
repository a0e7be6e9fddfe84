"""Stopped between two checkpoints and resumed, every objective ends with the same bits."""

from dataclasses import replace

import pytest
import torch

from medseg.data.training_set import PatchSampler
from medseg.training.checkpoint import Checkpoints
from medseg.training.co_learning import CoLearningSettings
from medseg.training.distillation import DistillationSettings
from medseg.training.learn import learn, pretrain
from medseg.training.objectives import MoreScans
from medseg.training.pretext import MaskedAutoencoderSettings, RelativePositionSettings
from medseg.training.privileged import PrivilegedSettings
from medseg.training.sharing import HardSharingSettings, SoftSharingSettings
from medseg.training.transfer import MethodSettings

STEPS, EVERY = 6, 2
PRETEXTS = (
    MaskedAutoencoderSettings(block=2),
    RelativePositionSettings(side=3, gap=0, jitter=0, neighbours=2, hidden=8),
)
OBJECTIVES = (
    CoLearningSettings(),
    HardSharingSettings(),
    SoftSharingSettings(strength=0.1),
    PrivilegedSettings(channels=("t1c",), hidden_fraction=0.5),
    PrivilegedSettings(channels=("t1c",), teacher="self"),
    DistillationSettings(samples=2),
)


class StoppedError(Exception):
    """What ends a training at a bad moment."""


def run(toy, settings, checkpoints):
    plan = toy.plan(steps=STEPS)
    if settings in PRETEXTS:
        outputs = 2 if isinstance(settings, MaskedAutoencoderSettings) else 1
        architecture = replace(plan.architecture, out_channels=outputs)
        plan = replace(plan, architecture=architecture)
        return pretrain(toy.cases(), plan, settings, checkpoints=checkpoints)
    distils = isinstance(settings, DistillationSettings)
    more = MoreScans(
        [
            replace(
                case,
                target=torch.cat([case.target, case.target[:1]]),
                known=torch.tensor([False, False, True]),
            )
            for case in toy.cases(1, seed=5)
        ],
        toy.regions("core", "whole", "lesion"),
    )
    if isinstance(settings, CoLearningSettings):
        more = MoreScans(toy.cases(1, seed=5), toy.regions())
    return learn(
        toy.cases(),
        plan,
        MethodSettings(method="gaussian" if distils else "ri"),
        settings,
        source=toy.source(with_prior=False) if distils else None,
        more=more,
        channels=("flair", "t1c"),
        checkpoints=checkpoints,
    )


@pytest.mark.parametrize("settings", [*PRETEXTS, *OBJECTIVES], ids=lambda s: s.kind)
def test_resumed_is_uninterrupted(toy, tmp_path, monkeypatch, settings):
    whole, result = run(toy, settings, None)
    ask, asked = PatchSampler.batch, []
    # With a trained teacher it is the student that is stopped.
    first = STEPS if isinstance(settings, DistillationSettings) else 0
    first = STEPS if getattr(settings, "teacher", "") == "trained" else first

    def batch(self, step):
        asked.append(step)
        if len(asked) == first + STEPS:
            raise StoppedError
        return ask(self, step)

    checkpoints = Checkpoints(folder=tmp_path, key="same", every_steps=EVERY)
    with monkeypatch.context() as patch:
        patch.setattr(PatchSampler, "batch", batch)
        with pytest.raises(StoppedError):
            run(toy, settings, checkpoints)
    assert list(tmp_path.glob("checkpoint-*"))
    resumed, again = run(toy, settings, checkpoints)
    found, wanted = toy.tensors_of(resumed), toy.tensors_of(whole)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in result.history]
    assert not list(tmp_path.glob("teacher/checkpoint*"))
