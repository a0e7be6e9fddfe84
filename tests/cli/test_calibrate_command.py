"""From a few labelled phantoms to a calibrated model and its decisions, by the command line."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.calibration.record import NAME
from medseg.cli.main import main
from medseg.config.build import load_plan
from medseg.experiment import crossfit
from medseg.inference.model import load_model
from medseg.inference.people import seen_among
from medseg.io.atomic import read_table

DATA = ("target.settings.spacing_mm=8.0", "target.settings.n_subjects=4")
FAST = (
    "protocol.preprocess.spacing_mm=[8,8,8]",
    "protocol.patch.size=[16,16,16]",
    "protocol.patch.batch_size=1",
    "protocol.target_training.steps=2",
    "protocol.target_training.device=cpu",
)
TARGET = ("experiment/demo", *DATA, *FAST)


def run(*argv: object) -> int:
    return main([str(part) for part in argv])


def finetune(out: Path, *options: object) -> int:
    return run("finetune", *TARGET, "--method", "ri", "--out", out, *options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "calibrated"
    assert finetune(out, "--calibrate", 2, "--coverage", 0.75) == 0
    return out


def write_case(folder: Path, *, affine: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    head = np.zeros((22, 26, 20), dtype=np.float32)
    head[3:-3, 3:-3, 3:-3] = 100 + 10 * rng.standard_normal((16, 20, 14))
    folder.mkdir(parents=True)
    for name in ("flair", "t1c"):
        nib.save(nib.Nifti1Image(head, affine), folder / f"{name}.nii.gz")
    return folder


def test_a_model_is_calibrated_while_it_is_made_and_used_so(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    known = loaded.calibration
    assert known is not None
    assert (known.method, known.n, known.coverage) == ("cross-fitted", 4, 0.75)
    assert set(known.regions) == {"core", "whole"}
    assert not (model / "folds").exists()
    assert len(loaded.spec.training["subjects"]) == 4
    affine = np.diag([-7.0, 6.0, 7.0, 1.0])
    affine[:3, 3] = (30, -20, 12)
    scans, out = write_case(tmp_path / "scans" / "case1", affine=affine).parent, tmp_path / "out"
    assert run("predict", model, scans, out, "--device", "cpu") == 0
    written = json.loads((out / "case1" / "case1.json").read_text())
    assert written["calibrated"] is True
    assert written["calibration"]["method"] == "cross-fitted"
    assert written["calibration"]["settings_that_differ"] == []
    for region in written["regions"]:
        assert region["volume_conformal_ml"]["subjects"] == 4
        assert region["volume_conformal_ml"]["is_finite"]
        for kind in ("inner", "outer"):
            image = nib.load(out / "case1" / f"case1_{region['name']}_{kind}.nii.gz")
            np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    rows = read_table(out / "cohort.tsv")
    assert [row["calibrated"] for row in rows] == ["True", "True"]
    assert {row["review"] for row in rows} <= {"True", "False"}
    assert {row["settings_that_differ"] for row in rows} == {"n/a"}
    assert rows[0]["coverage"] == "0.75"


def test_a_promise_of_other_settings_is_withdrawn_with_one_warning(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_case(tmp_path / "scans" / name, affine=np.diag([7.0, 6.0, 7.0, 1.0]))
    argv = ("predict", model, tmp_path / "scans", tmp_path / "out", "--device", "cpu")
    assert run(*argv) == 0
    assert "other settings" not in capsys.readouterr().err
    assert (tmp_path / "out" / "a" / "a_core_inner.nii.gz").exists()
    assert run(*argv, "--profile", "best") == 0
    shown = capsys.readouterr().err
    assert shown.count("other settings") == 1
    assert "profile" in shown
    assert not list((tmp_path / "out").rglob("*_inner.nii.gz"))
    for row in read_table(tmp_path / "out" / "cohort.tsv"):
        assert (row["coverage"], row["review"], row["conformal_low_ml"]) == ("n/a",) * 3
        assert row["settings_that_differ"] == "profile"


def test_a_stale_calibration_stops_a_prediction(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(tmp_path / "other", "protocol.seed=5") == 0
    shutil.copy(model / NAME, tmp_path / "other" / NAME)
    case = write_case(tmp_path / "scans", affine=np.diag([7.0, 6.0, 7.0, 1.0]))
    assert run("predict", tmp_path / "other", case, tmp_path / "out") == 2
    assert "fitted to another model" in capsys.readouterr().err
    # What makes no prediction has no use for it.
    assert run("harvest", tmp_path / "other", "--out", tmp_path / "kernels") == 0


def test_a_model_is_calibrated_on_cases_that_it_never_saw(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(model, tmp_path / "mine")
    before = (mine / NAME).read_bytes()
    argv = ("calibrate", mine, "experiment/demo", *DATA, "--device", "cpu", "--coverage", 0.8)
    assert run(*argv) == 4
    shown = capsys.readouterr().err
    assert "has not seen" in shown
    assert "--other-people" in shown
    assert (mine / NAME).read_bytes() == before
    assert run(*argv, "--other-people") == 0
    capsys.readouterr()
    assert run(*argv, "target.settings.seed=77") == 0
    known = load_model(mine).calibration
    assert known is not None
    assert (known.method, known.n) == ("held-out", 4)
    assert "has not seen" in (tmp_path / "mine_calibrate.log").read_text()
    people = load_plan("experiment/demo", DATA).target.source.identifiers
    for path in (p for p in mine.rglob("*") if p.is_file()):
        assert not any(who.encode() in path.read_bytes() for who in people), path
    assert capsys.readouterr().out == f"{mine / NAME}\n"
    assert run(*argv, "protocol.threshold=0.4") == 2
    assert "protocol.threshold=0.4 would have no effect" in capsys.readouterr().err


def test_an_interrupted_calibration_goes_on_and_tidies_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, save = shutil.copytree(model, tmp_path / "mine"), crossfit.save_calibration
    before = (mine / NAME).read_bytes()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crossfit, "save_calibration", interrupt)
    argv = ("calibrate", mine, "experiment/demo", *DATA, "target.settings.seed=77")
    argv = (*argv, "--device", "cpu", "--coverage", 0.8)
    assert run(*argv) == 130
    assert (mine / NAME).read_bytes() == before
    kept = {path: path.stat().st_mtime_ns for path in (mine / "calibration_state").iterdir()}
    assert len(kept) == 8, "each case twice"
    assert run(*argv) == 130
    now = {path: path.stat().st_mtime_ns for path in (mine / "calibration_state").iterdir()}
    assert now == kept, "none is predicted again"
    monkeypatch.setattr(crossfit, "save_calibration", save)
    assert run(*argv) == 0
    assert not (mine / "calibration_state").exists()
    assert (mine / NAME).read_bytes() != before


def test_an_interrupted_cross_fit_goes_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "parts", ("--calibrate", 2, "--coverage", 0.75)
    real, trained = crossfit.finetune_target, []

    def first_fold_is_interrupted(plan, *args, **more):
        trained.append(more["out"].name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(plan, *args, **more)

    monkeypatch.setattr(crossfit, "finetune_target", first_fold_is_interrupted)
    assert finetune(out, *options) == 130
    assert not (out / NAME).exists()
    assert load_model(out).calibration is None, "the model is there already"
    assert finetune(out, *options) == 0
    # The model of all is asked for again, and there.
    assert trained == ["parts", "fold_1_of_2", "parts", "fold_1_of_2", "fold_2_of_2"]
    assert "done already" in (out / "medseg.log").read_text()
    assert (out / NAME).read_bytes() == (model / NAME).read_bytes()


def test_a_finished_calibration_is_neither_made_again_nor_written_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(model, tmp_path / "mine")
    before = {name: (mine / name).stat().st_mtime_ns for name in (NAME, "model.safetensors")}
    asked = ("--calibrate", 2, "--coverage", 0.75)
    for same in (asked, ()):
        assert finetune(mine, *same) == 0
        assert "done already" in capsys.readouterr().err
    for other in (("--calibrate", 3, "--coverage", 0.75), ("--calibrate", 2, "--coverage", 0.8)):
        assert finetune(mine, *other) == 2
        assert f"delete {NAME}" in " ".join(capsys.readouterr().err.split())
    assert finetune(mine, *asked, "protocol.seed=3") == 2
    fold = mine / "folds" / "fold_1_of_2"
    fold.mkdir(parents=True)
    (fold / "begun.txt").write_text("ended before it was removed")
    assert finetune(mine, *asked) == 0
    assert {name: (mine / name).stat().st_mtime_ns for name in before} == before
    assert not (mine / "folds").exists()


def test_what_lies_beside_the_folds_is_left(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(model, tmp_path / "mine")
    (mine / NAME).unlink()
    for name in ("notes.txt", "fold_2_of_2/mine.txt", "older/x.txt"):
        (mine / "folds" / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / "folds" / name).write_text("mine")
    asked = ("--calibrate", 2, "--coverage", 0.75)
    assert finetune(mine, *asked) == 2
    assert "fold_2_of_2 was made by somebody else" in " ".join(capsys.readouterr().err.split())
    (mine / "folds" / "fold_2_of_2" / "mine.txt").unlink()
    of_a_run_by_three = mine / "folds" / "fold_1_of_3"
    of_a_run_by_three.mkdir()
    (of_a_run_by_three / "begun.txt").write_text("x")
    assert finetune(mine, *asked) == 0
    left = {path.relative_to(mine / "folds").as_posix() for path in (mine / "folds").rglob("*")}
    assert left == {"notes.txt", "older", "older/x.txt"}


def test_a_model_that_was_finished_before_can_be_calibrated(model: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(model, tmp_path / "mine")
    before = (mine / NAME).read_bytes()
    (mine / NAME).unlink()
    assert finetune(mine, "--calibrate", 2, "--coverage", 0.75) == 0
    assert (mine / NAME).read_bytes() == before


def test_people_of_source_and_more_scans_count_as_seen(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By early stopping, by the source's source, and by scans beside the target's."""
    source = shutil.copytree(model, tmp_path / "source")
    description = json.loads((source / "model.json").read_text())
    whose = load_plan("experiment/demo", DATA).target.source.subjects
    # Models of before have the names as they are.
    description["spec"]["training"] |= {"subjects": ["x"], "seen_subjects": ["x", whose[0]]}
    (source / "model.json").write_text(json.dumps(description))
    out, more = tmp_path / "out", ("--method", "pr", "--source", source)
    few = ("--calibrate", 2, "--coverage", 0.75)
    assert run("finetune", *TARGET, "--out", out, *more, *few) == 4
    assert whose[0] in capsys.readouterr().err
    assert not (out / "model.json").exists(), "refused before any training"
    assert run("finetune", *TARGET, "--out", out, *more, *few, "--other-people") == 0
    seen = load_model(out).spec.training["seen_subjects"]
    assert set(seen_among(seen, ["x", "y", *whose])) == {"x", *whose}
    assert not {"x", *whose} & set(seen)
    assert f"seen_subjects: {len(whose) + 1}\n" in (out / "card.md").read_text()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--calibrate", 9), 4, "9 folds of 4 subjects"),
        (("--calibrate", 1), 4, "at least 2"),
        (("--calibrate", 2, "--coverage", 1), 2, "between 0 and 1"),
        (("--calibrate", 2, "--coverage", 90), 2, "between 0 and 1"),
        (("--calibrate", -1), 2, "--calibrate"),
        (("--coverage", 0.8), 2, "--calibrate is not given"),
        (("--other-people",), 2, "--calibrate is not given"),
    ],
)
def test_what_cannot_be_calibrated_costs_no_training(
    options: tuple[object, ...],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert finetune(tmp_path / "out", *options) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.json").exists()
