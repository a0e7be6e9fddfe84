"""The known truths of the translation table, and how its lines come about."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.translation.apply import average_slices
from tools.translation.cohorts import QUICK, known_map, thick, thin_heads, zscored
from tools.translation.images import thin_makers, thin_rows
from tools.translation.report import markdown, summary
from tools.translation.restoring import masks, smooth


def test_a_thick_case_is_the_average_of_the_thin_one() -> None:
    cohort = thin_heads(replace(QUICK, n_thin=1, thin_mm=10.0), test=True, seed=0)
    case = cohort[0]
    given = thick(case, 2)
    assert given.grid.spacing_mm == pytest.approx((10.0, 10.0, 20.0))
    averages = average_slices(case.scans["flair"].data, axis=2, factor=2)
    assert torch.equal(given.scans["flair"].data, averages)
    found = thin_makers(None, 2)
    found.pop("super-resolution")
    rows = {row["method"]: row for row in thin_rows(found, cohort, 2)}
    # Repeating is consistent too, but knows nothing of neighbours.
    assert rows["linear, consistent"]["psnr_db"] > rows["repeat"]["psnr_db"]
    consistent = found["linear, consistent"](given)
    assert torch.allclose(average_slices(consistent, axis=2, factor=2), averages, atol=1e-5)


def test_the_known_map_keeps_the_background_and_is_not_monotone() -> None:
    case = PhantomSource(PhantomSettings(n_subjects=1, spacing_mm=8.0, modalities=("flair",)))[0]
    mapped = known_map(case.scans["flair"], case.brain)
    inside = case.brain.data > 0
    assert (mapped.data[~inside] == 0).all()
    assert torch.equal(mapped.data, known_map(case.scans["flair"], case.brain).data)
    scores = zscored(mapped.data, inside)
    assert abs(float(scores[inside].mean())) < 1e-5
    assert float(scores[inside].std()) == pytest.approx(1.0, abs=1e-4)


def test_a_line_has_the_mean_and_the_paired_gain() -> None:
    rows = [
        {"method": method, "case": f"c{i}", "dsc": 0.5 + 0.1 * i + gain}
        for method, gain in (("base", 0.0), ("ours", 0.05))
        for i in range(3)
    ]
    base, ours = summary(rows, against="base")
    assert base["dsc"]["mean"] == pytest.approx(0.6)
    assert "gain" not in base["dsc"]
    assert ours["dsc"]["gain"] == pytest.approx([0.05, 0.05, 0.05])
    table = {"note": "n.", "against": "base", "lines": [base, ours], "seconds": 1.0}
    assert "+0.050 [+0.050, +0.050]" in markdown({"t": table}, head="h")


def test_smooth_gaps_solve_laplaces_equation() -> None:
    ramp = torch.arange(24.0).expand(1, 1, 24, 24)
    seen = masks(1, seed=0)["hole of 8 x 8"]
    assert torch.allclose(smooth(ramp, seen), ramp, atol=1e-2)
