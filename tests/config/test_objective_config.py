"""Objectives chosen in YAML."""

import pytest
import yaml

from medseg.config.build import load_plan, read_experiment
from medseg.config.load import find_config
from medseg.errors import ConfigError
from medseg.training.co_learning import CoLearningSettings
from medseg.training.pretext import RelativePositionSettings
from medseg.training.sharing import SoftSharingSettings


def values(**changes):
    text = find_config("experiment/little").read_text(encoding="utf-8")
    return {**yaml.safe_load(text), **changes}


def test_every_kind_is_built_from_its_name():
    plan = load_plan("experiment/little", ["arms.4.objective.strength=0.5"])
    assert isinstance(plan.pretraining["position"], RelativePositionSettings)
    kinds = [arm.objective.kind for arm in plan.arms if arm.objective is not None]
    assert set(kinds) == {
        "co_learning", "hard_sharing", "soft_sharing", "privileged", "distillation"
    }  # fmt: skip
    assert plan.arms[4].objective == SoftSharingSettings(strength=0.5)
    labels = [arm.label for arm in plan.arms]
    assert len(set(labels)) == len(labels)
    assert {"ri", "pr", "ri_co_learning", "without_t1c", "gaussian_distillation"} <= set(labels)
    hidden = {arm.label: arm.hidden_channels for arm in plan.arms}
    assert hidden["without_t1c"] == ("t1c",)
    assert hidden["ri"] == ()
    assert set(plan.scans) == {"unlabelled", "ms"}


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"method": {"method": "ri"}, "objective": {"kind": "co_learning"}}, "scans must name"),
        ({"method": {"method": "ri"}, "scans": "ms"}, "scans must name"),
        (
            {"method": {"method": "ri"}, "objective": {"kind": "hard_sharing"}, "scans": "msx"},
            "'msx'",
        ),
        ({"method": {"method": "ri"}, "objective": {"kind": "distillation"}}, "distillation"),
        ({"method": {"method": "ri"}, "objective": {"kind": "nothing"}}, "nothing"),
        (
            {"method": {"method": "ri"}, "objective": {"kind": "co_learning", "wieght": 1}},
            "did you mean 'weight'",
        ),
        (
            {"method": {"method": "ri"}, "objective": {"kind": "soft_sharing", "strenth": 1}},
            "did you mean 'strength'",
        ),
        (
            {"method": {"method": "ri"}, "objective": {"kind": "privileged", "channels": ["t9"]}},
            "t9",
        ),
    ],
)
def test_an_arm_that_cannot_be_trained_is_named(arm, words):
    with pytest.raises(ConfigError, match=words):
        read_experiment(values(arms=[arm]), where="test")


def test_pretraining_of_no_source_is_named():
    wrong = values(pretraining={"elsewhere": {"kind": "masked_autoencoder"}})
    with pytest.raises(ConfigError, match="elsewhere"):
        read_experiment(wrong, where="test")


def test_the_settings_of_an_objective_are_its_own():
    given = values()
    assert "weight" not in given["arms"][2]["objective"]
    config = read_experiment(given, where="test")
    assert config.arms[2].objective == CoLearningSettings()
