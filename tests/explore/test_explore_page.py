"""From scans on disk to the page and the files beside it."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.cli.main import main
from medseg.errors import ConfigError, DataError
from medseg.explore import Cohort, ExploreSettings, explore_scans, explore_table
from medseg.explore.items import (
    ScanItem,
    are_predictions,
    items_of_folder,
    items_of_predictions,
)
from medseg.explore.sections import SECTIONS
from medseg.io.atomic import read_table, write_json
from medseg.scan import Case


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_the_outlier_is_flagged_and_told_of_in_words(cohort: Cohort) -> None:
    table, unusual = cohort.findings.table, cohort.findings.unusual
    noisy = table.identifiers.index("Noisy_Doe")
    assert noisy in unusual.flagged[:2]
    told = " ".join(reason.words for reason in unusual.reasons[noisy])
    assert told.count(" is very ") == 4
    # The scan without T1 is odd as well, and for that reason.
    bare = table.identifiers.index("Jane_Doe_03")
    assert "T1 is missing, which 100 % of the others have." in [
        reason.words for reason in unusual.reasons[bare]
    ]
    assert len(unusual.flagged) <= 4


def test_a_broken_scan_does_not_stop_the_others(cohort: Cohort, out: Path) -> None:
    assert len(cohort.findings.table) == 17
    assert [failure.scan for failure in cohort.failures] == ["Broken_Doe"]
    assert [row["scan"] for row in read_table(out / "failures.tsv")] == ["Broken_Doe"]


def test_sites_are_the_outermost_folders(cohort: Cohort) -> None:
    assert set(cohort.findings.table.groups["site"]) == {"north", "south"}


def test_the_page_has_every_section_and_stands_alone(cohort: Cohort, out: Path) -> None:
    page = (out / "explore.html").read_text(encoding="utf-8")
    anchors = re.findall(r'<section id="(\w+)"', page)
    assert len(anchors) == len(SECTIONS) == len(set(anchors))
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "prefers-color-scheme: dark" in page
    rows, columns = cohort.findings.map.grid
    assert page.count('type="radio"') == rows * columns
    planes = len(cohort.findings.table.features)
    assert page.count('<label for="node-0"') == planes + 3


def test_no_name_of_a_person_is_on_the_page_unless_asked_for(
    cohort: Cohort, scans: Path, out: Path, tmp_path: Path
) -> None:
    page = (out / "explore.html").read_text(encoding="utf-8")
    assert "Doe" not in page
    assert "scan 01" in page
    named = {row["label"]: row["case"] for row in rows_of(out / "scans.csv")}
    assert named["scan 01"] == cohort.findings.table.identifiers[0]
    few = [item for item in items_of_folder(scans) if item.identifier < "Jane_Doe_04"][1:]
    explore_scans(few, out=tmp_path, title="x", settings=ExploreSettings(show_names=True))
    assert "Jane_Doe_01" in (tmp_path / "explore.html").read_text(encoding="utf-8")


def test_what_was_measured_is_not_measured_again(
    cohort: Cohort, scans: Path, out: Path, make_case: Callable[..., Path], tmp_path: Path
) -> None:
    for i in range(4):
        make_case(tmp_path / "in" / f"case{i}", seed=i)
    outcomes: list[str] = []

    def look() -> Cohort:
        outcomes.clear()
        return explore_scans(
            items_of_folder(tmp_path / "in"),
            out=tmp_path / "out",
            title="x",
            on_finished=lambda _, outcome: outcomes.append(outcome),
        )

    first = look()
    assert outcomes == ["done"] * 4
    make_case(tmp_path / "in" / "case2", seed=9)
    make_case(tmp_path / "in" / "case9", seed=10)
    look()
    assert outcomes == ["skipped", "skipped", "done", "skipped", "done"]
    make_case(tmp_path / "in" / "case2", seed=2)
    (tmp_path / "in" / "case9" / "flair.nii.gz").unlink()
    (tmp_path / "in" / "case9" / "t1.nii.gz").unlink()
    again = look()
    assert outcomes == ["skipped", "skipped", "done", "skipped"]
    np.testing.assert_array_equal(first.findings.table.values, again.findings.table.values)


def test_the_same_seed_finds_the_same(cohort: Cohort, scans: Path, out: Path) -> None:
    again = explore_scans(
        items_of_folder(scans), out=out, title="Two sites", settings=ExploreSettings(seed=1)
    )
    assert len(again.extracted.cached) == 17  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.findings.unusual.nats, cohort.findings.unusual.nats)
    np.testing.assert_array_equal(again.findings.map.node, cohort.findings.map.node)
    np.testing.assert_array_equal(again.findings.clusters.label, cohort.findings.clusters.label)


def test_the_json_holds_what_the_page_says(cohort: Cohort, out: Path) -> None:
    found = json.loads((out / "explore.json").read_text(encoding="utf-8"))
    assert found["scans"] == 17
    assert "Noisy_Doe" in {one["case"] for one in found["unusual"]}
    assert found["dimensions"]["patches"]["proposed_latent"] >= 1
    assert 0 <= found["map"]["topographic_error"] <= 1
    assert np.sum(found["map"]["hits"]) == 17
    assert {"label", "case", "volume_ml", "sphericity"} <= set(rows_of(out / "lesions.csv")[0])


def test_scans_without_masks_have_features_of_whole_scans(
    make_case: Callable[..., Path], tmp_path: Path
) -> None:
    for i in range(3):
        make_case(tmp_path / "in" / f"case{i}", seed=i, lesion=False)
    cohort = explore_scans(items_of_folder(tmp_path / "in"), out=tmp_path / "out", title="x")
    assert not any(name.startswith("lesion") for name in cohort.findings.table.features)
    page = (tmp_path / "out" / "explore.html").read_text(encoding="utf-8")
    assert "No scan has a mask with lesions" in page
    assert not (tmp_path / "out" / "lesions.csv").exists()


def test_predictions_can_be_looked_at_and_can_give_the_masks(
    make_case: Callable[..., Path], tmp_path: Path
) -> None:
    for i in range(4):
        case = make_case(tmp_path / "in" / f"case{i}", seed=i)
        place = tmp_path / "predicted" / f"case{i}"
        place.mkdir(parents=True)
        (case / "flair.nii.gz").rename(place / f"case{i}_prob.nii.gz")
        (case / "mask.nii.gz").rename(place / f"case{i}_mask.nii.gz")
        write_json(place / f"case{i}.json", {})
    assert are_predictions(tmp_path / "predicted")
    assert not are_predictions(tmp_path / "in")
    own = items_of_predictions(tmp_path / "predicted")[0].load()
    assert set(own.scans) == {"probability"}
    assert own.label is not None
    borrowed = items_of_folder(tmp_path / "in", predictions=tmp_path / "predicted")[0].load()
    assert set(borrowed.scans) == {"t1"}
    assert borrowed.label is not None


def test_a_folder_by_patient_and_visit_has_no_sites(
    make_case: Callable[..., Path], tmp_path: Path
) -> None:
    for person in ("anna", "berta"):
        for visit in ("ses-1", "ses-2"):
            make_case(tmp_path / person / visit, seed=0)
    items = items_of_folder(tmp_path)
    assert {item.subject for item in items} == {"anna", "berta"}
    assert all(not item.groups for item in items)


def test_the_command_looks_at_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    lines = ["case;scanner;age;volume;same"]
    lines += [f"c{i};{'AB'[i % 2]};{rng.normal(50, 9):.1f};{rng.gamma(2):.2f};7" for i in range(20)]
    table = tmp_path / "features.csv"
    table.write_text("\n".join(lines), encoding="utf-8")
    assert main(["explore", str(table), "--out", str(tmp_path / "out")]) == 0
    assert "explore.html" in capsys.readouterr().out
    page = (tmp_path / "out" / "explore.html").read_text(encoding="utf-8")
    assert "Left out (1), the same for all scans: same." in page
    assert main(["explore", str(table), "--predictions", "x", "--out", str(tmp_path)]) == 2


def test_bad_input_is_told(make_case: Callable[..., Path], scans: Path, tmp_path: Path) -> None:
    few = items_of_folder(scans)[:2]
    with pytest.raises(DataError, match="at least 3 scans"):
        explore_scans(few, out=tmp_path, title="x")
    (tmp_path / "same.csv").write_text("case,a\n" + "\n".join(f"c{i},1" for i in range(5)))
    with pytest.raises(DataError, match="differ in at least one feature"):
        explore_table(tmp_path / "same.csv", out=tmp_path, title="x")
    (tmp_path / "words.csv").write_text("case,a\n" + "\n".join(f"c{i},x{i}" for i in range(5)))
    with pytest.raises(DataError, match="a column of numbers"):
        explore_table(tmp_path / "words.csv", out=tmp_path, title="x")
    (tmp_path / "twice.csv").write_text("case,a\nc,1\nc,2\nd,3\n")
    with pytest.raises(DataError, match="name each scan once"):
        explore_table(tmp_path / "twice.csv", out=tmp_path, title="x")


def test_a_configuration_names_scans(tmp_path: Path) -> None:
    from medseg.config.cohort import scans_of

    items = scans_of("experiment/demo", ["target.settings.n_subjects=2"])
    assert len(items) == 16 + 24 + 2
    assert len({item.fingerprint for item in items}) == len(items)
    assert {item.groups["site"] for item in items} >= {"phantom-tumour-target"}
    with pytest.raises(ConfigError, match="is a folder"):
        scans_of(str(tmp_path), ["a=1"])


def test_real_scans_of_two_diseases_fall_apart(shared_data: Path, tmp_path: Path) -> None:
    def with_flair_alone(item: ScanItem) -> ScanItem:
        # Each further modality of scans this large takes seconds.
        def load() -> Case:
            case = item.load()
            return replace(case, scans={"flair": case.scans["flair"]})

        return replace(item, load=load)

    items = [
        with_flair_alone(item)
        for item in items_of_folder(shared_data)
        if item.identifier in {"P14_T1", "patient07", "pat0001", "pat0005"}
    ]
    cohort = explore_scans(items, out=tmp_path, title="real")
    assert len(cohort.findings.table) == 4
    table = cohort.findings.table
    volume = dict(zip(table.identifiers, table.everything["lesion.volume_ml"], strict=True))
    assert volume["P14_T1"] == pytest.approx(24.8, abs=0.1)
    assert volume["pat0001"] > 20
    label = dict(zip(table.identifiers, cohort.findings.clusters.label, strict=True))
    assert label["pat0001"] == label["pat0005"] != label["patient07"]
