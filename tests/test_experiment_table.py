"""README's tables say what the tables of a run say."""

from pathlib import Path

import pytest

from medseg.io.atomic import write_json, write_table
from tools import experiment_table

ARM = {"method": "auto_x5", "source": "generated", "n": 5, "region": "core"}
SCORES = {"mean_dsc": 0.71234, "low_dsc": 0.65, "high_dsc": 0.77, "mean_nll_nats": 0.0612}
PAIR = {
    "against": "pr_x5",
    "against_source": "generated",
    "difference_dsc": 0.02,
    "low": 0.01,
    "high": 0.03,
    "p_holm": 0.04,
    "difference_nll_nats": -0.02,
    "low_nll_nats": -0.03,
    "high_nll_nats": -0.01,
    "n_subjects": 40,
    "n_pairs": 360,
}
GAIN = {
    "gain_expected_dsc": 0.031,
    "low_gain_expected_dsc": 0.02,
    "high_gain_expected_dsc": 0.04,
    "gain_most": 0.05,
}


def test_tables_hold_the_numbers_of_the_run(tmp_path: Path, capsys) -> None:
    write_json(tmp_path / "run.json", {"config": {}})
    threshold = {**ARM, "method": "threshold", "source": "none"}
    unknown = dict.fromkeys([*SCORES, "mean_ece"], "n/a")
    write_table(
        tmp_path / "summary.tsv",
        [{**ARM, **SCORES, "mean_ece": 0.02}, {**threshold, **unknown, "mean_dsc": 0.4}],
    )
    write_table(tmp_path / "decisions.tsv", [{**ARM, **GAIN}])
    write_table(
        tmp_path / "paired.tsv", [{**ARM, **PAIR}, {**ARM, **PAIR, "method": "pr", "p_holm": 1}]
    )
    cases = {"subset": "a", "seed": 0}
    arms = [("auto_x5", "generated", (0.5, 0.9)), ("pr", "generated", (0.8, 0.2))]
    write_table(
        tmp_path / "scores.tsv",
        [
            {**ARM, **cases, "method": method, "source": source, "case": str(case), "dsc": dsc}
            for method, source, scores in [*arms, ("ri", "none", (1.0, 1.0))]
            for case, dsc in enumerate(scores)
        ],
    )
    assert experiment_table.main([str(tmp_path), "--arm", "auto_x5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| Threshold", "| Auto (×5)"]
    assert "0.400 [, ]" in lines[2]
    assert "0.712 [0.650, 0.770] | 0.0612 | 0.0200 | +0.031 [+0.020, +0.040], 0.050 |" in lines[3]
    best = "| 5 | core | 2 | auto_x5, generated | 0.700 | 0.850 | -1.000 | -1.000 |"
    assert best in lines, "the mean of .8 and .9, and nothing of what has no source"
    with pytest.raises(SystemExit, match=r"no arm of .* auto_x5 \(generated\), pr"):
        experiment_table.main([str(tmp_path), "--arm", "wise"])
    (pair,) = [line for line in lines if "PR (×5)" in line]
    assert "+0.020 [+0.010, +0.030] | 0.040 | -0.020 [-0.030, -0.010] | 40 | 360" in pair


def test_a_curve_needs_two_sizes(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"config": {}, "regions": ["core"]})
    scores = [
        {**ARM, "n": n, "case": f"c{c}", "subject": f"c{c}", "subset": "0", "seed": 0, "dsc": 0.5}
        for n in (5, 10)
        for c in range(3)
    ]
    write_table(tmp_path / "scores.tsv", scores)
    experiment_table.draw(tmp_path, tmp_path / "curve.svg")
    assert "n = 5, 10" in (tmp_path / "curve.svg").read_text()
    write_table(tmp_path / "scores.tsv", scores[:3])
    with pytest.raises(SystemExit, match="two numbers"):
        experiment_table.draw(tmp_path, tmp_path / "none.svg")


def test_the_nats_are_those_of_the_last_third(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"config": {}, "regions": ["core"]})
    write_table(tmp_path / "scores.tsv", [{**ARM, "case": "c", "subject": "c", "dsc": 0.5}])
    write_table(tmp_path / "summary.tsv", [{**ARM, **SCORES}])
    for member, data in enumerate((10.0, 30.0)):
        steps = [
            {"step": step, "data_nats": 900 if step < 5 else data, "kl_nats": 2000 + step}
            for step in range(1, 7)
        ]
        folder = tmp_path / "histories"
        folder.mkdir(exist_ok=True)
        write_table(folder / f"auto_x5_generated_n5_0_member{member}.tsv", steps)
    assert "| Auto (×5) | generated | 5 | 20 | 2006 | 2 |" in experiment_table.nats(tmp_path)


def test_an_arm_is_held_against_another_run_on_the_same_cases_alone(tmp_path: Path) -> None:
    runs = tmp_path / "run", tmp_path / "other"
    for run, method, scores in zip(
        runs, ("auto_x5", "pr"), ({"a": 0.9, "b": 0.6, "c": 0.1}, {"a": 0.5, "b": 0.4}), strict=True
    ):
        place = {**ARM, "method": method, "subset": "1+2", "seed": 0}
        rows = [
            {**place, "case": case, "subject": case, "dsc": dsc, "nll_nats": 1 - dsc}
            for case, dsc in scores.items()
        ]
        lost = {**place, "seed": 1, "case": "a", "subject": "a", "dsc": 0, "nll_nats": 0}
        write_table(run / "scores.tsv", [*rows, lost] if method == "pr" else rows)
    found = experiment_table.beside(runs[0], "auto_x5", "", runs[1])
    row = "| 5 | core | PR, generated | +0.300 [+0.200, +0.400] | -0.300 [-0.400, -0.200] | 2 |"
    assert found.splitlines()[2:] == [row]
    for method, source in (("wise", ""), ("auto_x5", "ms")):
        with pytest.raises(SystemExit, match="no case of the subsets and seeds"):
            experiment_table.beside(runs[0], method, source, runs[1])


def test_families_are_the_heads_and_shapes_of_generated_subjects(tmp_path: Path) -> None:
    for name in ("heads/a", "heads/b", "heads/c", "heads/d", "tumours/x_seg", "tumours/y_seg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    target = {
        "kind": "phantom",
        "settings": {
            "disease": "tumour",
            "preset": "target",
            "n_subjects": 8,
            "label_maps": str(tmp_path / "heads"),
            "tumour_masks": str(tmp_path / "tumours"),
        },
    }
    config = {"title": "t", "sources": {}, "target": target, "arms": [{"method": {"method": "ri"}}]}
    write_json(tmp_path / "run.json", {"config": config, "config_sha256": ""})
    cases = [f"semireal-tumour-target-s0-{index:04d}" for index in range(8)]
    rows = [
        {
            **ARM, "method": method, "subset": "a", "seed": seed, "case": case, "subject": case,
            "dsc": dsc, "nll_nats": "n/a",
        }
        for method, dsc in (("auto_x5", 0.9), ("pr", 0.7))
        for seed in (0, 1)
        for case in cases
    ]  # fmt: skip
    write_table(tmp_path / "scores.tsv", rows)
    found = experiment_table.families(tmp_path, "auto_x5", "").splitlines()
    gap = "+0.2000 [+0.2000, +0.2000]"
    # Every other head is the target's.
    assert found[2] == f"| 5 | core | PR, generated | {gap} | {gap} | 2 | 2 |"
    del target["settings"]["tumour_masks"]
    write_json(tmp_path / "run.json", {"config": config, "config_sha256": ""})
    with pytest.raises(SystemExit, match="no two parents"):
        experiment_table.families(tmp_path, "auto_x5", "")
