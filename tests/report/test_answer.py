from __future__ import annotations

from pathlib import Path

import pytest

from medseg.io.atomic import write_table
from medseg.report.answer import answer_for, caution
from medseg.report.run_folder import Run, read_run


def make_run(folder: Path, levels: dict[tuple[str, str, int], list[float]]) -> Run:
    """Return a run whose arms have the given DSC per case."""
    (folder / "run.json").write_text("{}")
    rows = [
        {"method": method, "source": source, "n": n, "subset": "0", "seed": 0,
         "case": f"case{i}", "region": "core", "dsc": dsc}
        for (method, source, n), values in levels.items()
        for i, dsc in enumerate(values)
    ]  # fmt: skip
    write_table(folder / "scores.tsv", rows)
    return read_run(folder)


def test_a_clear_gain_and_an_open_one_are_told_apart(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        {
            ("threshold", "none", 0): [0.30, 0.31, 0.32, 0.33, 0.30],
            ("ri", "none", 3): [0.40, 0.80, 0.45, 0.70, 0.55],
            ("pr", "ms", 3): [0.40, 0.41, 0.42, 0.43, 0.44],
            ("dwp", "ms", 3): [0.60, 0.61, 0.62, 0.63, 0.60],
        },
    )
    answer = answer_for(run, "core")
    assert answer is not None
    assert answer.best.arm.method == "dwp"
    verdicts = {c.difference.against: c.verdict for c in answer.comparisons}
    assert verdicts == {"ri": "unclear", "pr": "clear", "threshold": "clear"}
    text = " ".join(answer.sentences)
    assert "these data do not show a difference, against RI (+0.032" in text
    assert "excludes zero against PR from MS (+0.192" in text
    assert "With 5 test cases" in caution([answer])


def test_a_baseline_that_wins_is_named_as_the_winner(tmp_path: Path) -> None:
    run = make_run(tmp_path, {("threshold", "none", 0): [0.9, 0.8], ("ri", "none", 3): [0.1, 0.2]})
    answer = answer_for(run, "core")
    assert answer is not None
    assert "does better than the no-learning threshold: mean DSC 0.850" in answer.sentences[0]


def test_a_run_that_failed_on_a_hard_subset_does_not_make_an_arm_the_best(tmp_path: Path) -> None:
    arms = {"dwp": {"0": 0.783}, "pr": {"0": 0.8, "1": 0.4}}
    rows = [
        {"method": method, "source": "ms", "n": 3, "subset": subset, "seed": 0, "case": case,
         "subject": case, "region": "core", "dsc": dsc}
        for method, subsets in arms.items()
        for subset, dsc in subsets.items()
        for case in "ab"
    ]  # fmt: skip
    (tmp_path / "run.json").write_text("{}")
    write_table(tmp_path / "scores.tsv", rows)
    shared = [
        {"method": method, "source": "ms", "n": 3, "region": "core", "mean_rank": rank,
         "mean_dsc": dsc, "n_subjects": 2}
        for method, rank, dsc in (("pr", 1, 0.8), ("dwp", 2, 0.783))
    ]  # fmt: skip
    write_table(tmp_path / "ranks.tsv", shared)
    answer = answer_for(read_run(tmp_path), "core")
    assert answer is not None
    assert answer.best.arm.method == "pr"
    assert "lack training runs" in answer.sentences[-1]


def test_smaller_n_do_not_compete(tmp_path: Path) -> None:
    run = make_run(tmp_path, {("ri", "none", 1): [0.9, 0.9], ("pr", "ms", 3): [0.5, 0.5]})
    answer = answer_for(run, "core")
    assert answer is not None
    assert (answer.best.arm.method, answer.n) == ("pr", 3)


def test_one_case_gives_no_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path, {("ri", "none", 1): [0.4], ("dwp", "ms", 1): [0.5]})
    answer = answer_for(run, "core")
    assert answer is not None
    assert answer.comparisons[0].verdict == "unknown"
    assert "too few shared cases" in " ".join(answer.sentences)


def test_the_saved_paired_table_goes_first(tmp_path: Path) -> None:
    make_run(tmp_path, {("ri", "none", 1): [0.4, 0.4], ("dwp", "ms", 1): [0.5, 0.5]})
    row = {"method": "dwp", "source": "ms", "n": 1, "region": "core", "against": "ri"}
    values = {"difference_dsc": 0.123, "low": -0.1, "high": 0.3, "p_wilcoxon": 0.5, "n_cases": 2}
    write_table(tmp_path / "paired.tsv", [{**row, **values}])
    answer = answer_for(read_run(tmp_path), "core")
    assert answer is not None
    assert answer.comparisons[0].difference.mean == pytest.approx(0.123)
    assert answer.comparisons[0].text == "+0.123 [−0.100, +0.300]"
