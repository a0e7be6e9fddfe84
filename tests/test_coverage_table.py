"""Promises are counted as kept where the truth is where it was said to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.config.build import load_arm, load_plan
from medseg.inference.decide import RegionDecision
from medseg.inference.intensity_prior import RefinementSettings
from tools import coverage_table

TRUE = np.array([[[True, True, True, False]]])


def said(inner: list[int], outer: list[int], low_ml: float, high_ml: float) -> RegionDecision:
    masks = [torch.tensor([[mask]], dtype=torch.bool) for mask in (inner, outer)]
    return RegionDecision(inner=masks[0], outer=masks[1], low_ml=low_ml, high_ml=high_ml)


def test_what_is_missed_and_what_is_wrong_is_counted() -> None:
    kept = coverage_table._kept(said([0, 1, 0, 1], [1, 1, 0, 1], 0.1, 0.35), TRUE, 0.1)
    assert kept["volume_ml"] == pytest.approx(0.3)
    assert (kept["covered"], kept["missed"], kept["false"]) == (1, pytest.approx(1 / 3), 0.5)
    assert coverage_table._kept(said([0] * 4, [1] * 4, 0.31, 0.35), TRUE, 0.1)["covered"] == 0
    nothing = coverage_table._kept(said([0] * 4, [0] * 4, 0.0, 1.0), np.zeros_like(TRUE), 0.1)
    assert (nothing["covered"], nothing["missed"], nothing["false"]) == (1, 0.0, 0.0)


def test_another_setting_is_measured_apart() -> None:
    names = [
        coverage_table._stem(load_arm("gaussian", [f"wise_share={share}"]), "ms", 10, 5)
        for share in (0.25, 0.5, 0.5)
    ]
    assert names[0] != names[1] == names[2]
    refined = replace(load_arm("gaussian", ["wise_share=0.5"]), refine=RefinementSettings())
    assert coverage_table._stem(refined, "ms", 10, 5) != names[1]


def test_an_arm_is_found_by_its_name_in_tables() -> None:
    plan = load_plan("experiment/demo")
    assert [coverage_table.named(plan, arm.label) for arm in plan.arms] == list(plan.arms)
    with pytest.raises(SystemExit, match="no arm is called best: take one of"):
        coverage_table.named(plan, "best")


def test_no_promise_is_no_coverage() -> None:
    with pytest.raises(SystemExit, match="nothing is promised"):
        coverage_table._kept(RegionDecision(), TRUE, 0.1)


def test_the_table_averages_over_predictions_and_shows_subsets_apart() -> None:
    row = {"region": "core", "volume_ml": "10", "low_ml": "5", "high_ml": "25", "false": "0.2"}
    rows = [
        {**row, "subset": "0", "covered": "1", "missed": "0.1", "looked_at": "0", "dsc": "0.8"},
        {**row, "subset": "0", "covered": "1", "missed": "0.3", "looked_at": "1", "dsc": "0.4"},
        {**row, "subset": "1", "covered": "0", "missed": "0.2", "looked_at": "0", "dsc": "0.6"},
    ]
    lines = coverage_table.table(rows).splitlines()
    assert lines[2] == (
        "| core | 3 | 2 | 0.667 (0.00 to 1.00) | 20 | 10 | 0.200 | 0.200 | 0.33 | 0.400 | 0.700 |"
    )
    assert len(lines[0].split("|")) == len(lines[2].split("|"))
