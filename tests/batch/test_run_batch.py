import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.batch import run as batch_run
from medseg.batch.run import run_batch
from medseg.data.regions import RegionSettings
from medseg.errors import ScanFileError
from medseg.geometry import Grid
from medseg.inference.model import Model, ModelSpec
from medseg.inference.settings import PredictSettings
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.scan import Case, LabelMap, Scan

GRID = Grid((14, 16, 12), np.diag([3.0, 3.0, 3.0, 1.0]))
SETTINGS = PredictSettings(device="cpu", precision="float32")


class Above(nn.Module):
    """Inside where the image is above a learned cut."""

    def __init__(self, cut: float = 0.5) -> None:
        super().__init__()
        self.cut = nn.Parameter(torch.tensor(cut))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return 10 * (images - self.cut)


def model(cut: float = 0.5) -> Model:
    spec = ModelSpec(
        architecture=UNetSettings(in_channels=1, out_channels=1),
        channels=("flair",),
        regions=RegionSettings(names=("lesion",)),
        region_definition={"lesion": (1,)},
        preprocess=PreprocessSettings(spacing_mm=None, normalise="none"),
        method="test",
    )
    return Model(Above(cut), spec)


def case(identifier: str, size: int = 3) -> Case:
    brain = torch.zeros(GRID.shape, dtype=torch.uint8)
    brain[2:12, 2:14, 2:10] = 1
    flair = brain * 0.2
    flair[4 : 4 + size, 4:7, 4:7] = 1.0
    return Case(identifier, identifier, {"flair": Scan(flair, GRID)}, brain=LabelMap(brain, GRID))


def broken() -> Case:
    raise ScanFileError("x.nii.gz must be whole, but it is truncated.", hint="Copy it again.")


def items(*names: str):
    return [(name, lambda name=name: case(name)) for name in names]


def predict(out: Path, cases, *, net: Model | None = None, **changes):
    return run_batch(cases, model=net or model(), out=out, settings=SETTINGS, **changes)


def stamps(out: Path) -> dict[str, int]:
    files = (p for p in out.rglob("*") if p.is_file() and p.suffix != ".tsv")
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_files_and_tables_of_two_good_cases(tmp_path: Path) -> None:
    summary = predict(tmp_path, items("a", "b"))
    assert (summary.done, summary.skipped, summary.failures) == (["a", "b"], [], [])
    assert (tmp_path / "a" / "a_mask.nii.gz").is_file()
    rows = read_table(tmp_path / "cohort.tsv")
    assert [(row["case"], row["region"], row["lesions"]) for row in rows] == [
        ("a", "lesion", "1"),
        ("b", "lesion", "1"),
    ]
    assert float(rows[0]["volume_ml"]) == pytest.approx(27 * 27 / 1000)
    assert (tmp_path / "failures.tsv").read_text().split() == ["scan", "stage", "reason", "hint"]
    provenance = json.loads((tmp_path / "a" / "a.json").read_text())["provenance"]
    assert len(provenance["model_sha256"]) == 64
    assert provenance["settings"]["samples"] == 10
    assert provenance["versions"]["torch"] == torch.__version__


def test_one_scan_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def bug() -> Case:
        raise KeyError("surprise")

    headless = Case("d", "d", {"t2": case("d").scans["flair"]}, brain=case("d").brain)
    cases = [
        *items("a"),
        ("b", broken),
        ("c", bug),
        ("d", lambda: headless),
        ("../e", lambda: case("../e")),
        ("a", lambda: case("a")),
        ("f", lambda: case("g")),
        *items("h"),
    ]
    seen: list[tuple[str, str]] = []
    summary = predict(tmp_path, cases, on_finished=lambda *what: seen.append(what))
    assert summary.done == ["a", "h"]
    assert summary.total == len(seen) == len(cases)
    assert seen[1] == ("b", "failed")
    rows = read_table(tmp_path / "failures.tsv")
    assert [(row["scan"], row["stage"]) for row in rows] == [
        ("b", "load"),
        ("c", "load"),
        ("d", "prepare"),
        ("../e", "name"),
        ("a", "name"),
        ("f", "load"),
    ]
    assert rows[0]["reason"] == "x.nii.gz must be whole, but it is truncated."
    assert rows[0]["hint"] == "Copy it again."
    assert "KeyError" in rows[1]["reason"]
    assert "flair" in rows[2]["reason"]
    assert not (tmp_path.parent / "e").exists()


def test_a_network_that_fails_is_filed_under_predict(tmp_path: Path) -> None:
    summary = predict(tmp_path, items("a"), net=model(float("nan")))
    assert [(f.scan, f.stage) for f in summary.failures] == [("a", "predict")]
    assert not (tmp_path / "a").exists()


def test_resume_skips_what_is_done_and_leaves_its_files_alone(tmp_path: Path) -> None:
    predict(tmp_path, items("a"))
    before, net = stamps(tmp_path), model()
    summary = predict(tmp_path, items("a", "b"), net=net)
    assert (summary.skipped, summary.done) == (["a"], ["b"])
    assert net.network.calls == 1  # type: ignore[union-attr]
    after = stamps(tmp_path)
    assert all(after[path] == stamp for path, stamp in before.items())
    rows = read_table(tmp_path / "cohort.tsv")
    assert [row["case"] for row in rows] == ["a", "b"]
    assert rows[0]["volume_ml"] == rows[1]["volume_ml"]


def test_without_resume_all_is_done_again(tmp_path: Path) -> None:
    predict(tmp_path, items("a"))
    assert predict(tmp_path, items("a"), resume=False).done == ["a"]


def test_changed_input_model_or_settings_are_done_again(tmp_path: Path) -> None:
    predict(tmp_path, items("a"))
    assert predict(tmp_path, items("a")).skipped == ["a"]
    assert predict(tmp_path, [("a", lambda: case("a", size=4))]).done == ["a"]
    assert predict(tmp_path, items("a")).done == ["a"]
    assert predict(tmp_path, items("a"), net=model(0.6)).done == ["a"]
    other = PredictSettings(device="cpu", precision="float32", threshold=0.4)
    again = run_batch(items("a"), model=model(0.6), out=tmp_path, settings=other)
    assert again.done == ["a"]


@pytest.mark.parametrize("harm", ["remove", "change", "ledger"])
def test_damaged_results_are_done_again(tmp_path: Path, harm: str) -> None:
    predict(tmp_path, items("a"))
    mask = tmp_path / "a" / "a_mask.nii.gz"
    if harm == "remove":
        mask.unlink()
    elif harm == "change":
        mask.write_bytes(mask.read_bytes()[:-9])
    else:
        (tmp_path / "ledger" / "a.json").write_text('{"case": "a", "wo')
    assert predict(tmp_path, items("a")).done == ["a"]
    assert nib.load(mask).shape == GRID.shape


def test_an_interruption_leaves_whole_files_and_tables_and_can_be_resumed(tmp_path: Path) -> None:
    def stop() -> Case:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, [*items("a"), ("b", broken), ("c", stop), *items("d")])
    assert [row["case"] for row in read_table(tmp_path / "cohort.tsv")] == ["a"]
    assert [row["scan"] for row in read_table(tmp_path / "failures.tsv")] == ["b"]
    summary = predict(tmp_path, items("a", "b", "c", "d"))
    assert (summary.skipped, summary.done) == (["a"], ["b", "c", "d"])


def test_an_interruption_while_writing_is_not_taken_for_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(tmp_path, items("a"))
    real = batch_run.write_prediction

    def torn(prediction, folder, *, provenance):
        real(prediction, folder, provenance=provenance)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_run, "write_prediction", torn)
    changed = [("a", lambda: case("a", size=5))]
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, changed)
    monkeypatch.undo()
    assert predict(tmp_path, changed).done == ["a"]
    assert not list(tmp_path.rglob("*.part*"))


def test_cases_are_read_one_at_a_time(tmp_path: Path) -> None:
    read: list[str] = []

    def load(name: str) -> Case:
        assert (tmp_path / read[-1] / f"{read[-1]}.json").is_file() if read else True
        read.append(name)
        return case(name)

    predict(tmp_path, ((name, lambda name=name: load(name)) for name in "abc"))
    assert read == ["a", "b", "c"]
