import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.batch import run as batch_run
from medseg.batch.cases import Loader
from medseg.batch.run import BatchSummary, run_batch
from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError, ScanFileError
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


Predict = Callable[..., BatchSummary]


@pytest.fixture(params=[0, 1, 2], ids=["one after the other", "one ahead", "two ahead"])
def predict(request: pytest.FixtureRequest) -> Iterator[Predict]:
    """Every promise holds whatever is read ahead, and no thread outlives its batch."""

    def run(out: Path, cases, *, net: Model | None = None, **changes) -> BatchSummary:
        chosen = {"model": net or model(), "settings": SETTINGS, "read_ahead": request.param}
        return run_batch(cases, out=out, **{**chosen, **changes})

    yield run
    assert [t.name for t in threading.enumerate() if t.name.startswith("medseg-")] == []


def stamps(out: Path) -> dict[str, int]:
    files = (p for p in out.rglob("*") if p.is_file() and p.suffix not in {".tsv", ".lock"})
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_files_and_tables_of_two_good_cases(predict: Predict, tmp_path: Path) -> None:
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


def test_one_scan_that_fails_does_not_stop_the_others(predict: Predict, tmp_path: Path) -> None:
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


def test_a_network_that_fails_is_filed_under_predict(predict: Predict, tmp_path: Path) -> None:
    summary = predict(tmp_path, items("a"), net=model(float("nan")))
    assert [(f.scan, f.stage) for f in summary.failures] == [("a", "predict")]
    assert not (tmp_path / "a").exists()


def test_resume_skips_what_is_done_and_leaves_its_files_alone(
    predict: Predict, tmp_path: Path
) -> None:
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


def test_without_resume_all_is_done_again(predict: Predict, tmp_path: Path) -> None:
    predict(tmp_path, items("a"))
    assert predict(tmp_path, items("a"), resume=False).done == ["a"]


def test_changed_input_model_or_settings_are_done_again(predict: Predict, tmp_path: Path) -> None:
    predict(tmp_path, items("a"))
    assert predict(tmp_path, items("a")).skipped == ["a"]
    assert predict(tmp_path, [("a", lambda: case("a", size=4))]).done == ["a"]
    assert predict(tmp_path, items("a")).done == ["a"]
    assert predict(tmp_path, items("a"), net=model(0.6)).done == ["a"]
    other = PredictSettings(device="cpu", precision="float32", threshold=0.4)
    again = predict(tmp_path, items("a"), net=model(0.6), settings=other)
    assert again.done == ["a"]


@pytest.mark.parametrize("harm", ["remove", "change", "ledger"])
def test_damaged_results_are_done_again(predict: Predict, tmp_path: Path, harm: str) -> None:
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


def test_a_file_that_medseg_did_not_write_costs_the_case_and_stays(
    predict: Predict, tmp_path: Path
) -> None:
    mine = tmp_path / "a" / "a_mask.nii.gz"
    mine.parent.mkdir()
    mine.write_bytes(b"drawn by hand")
    summary = predict(tmp_path, items("a", "b"))
    assert [(f.scan, f.stage) for f in summary.failures] == [("a", "name")]
    assert summary.done == ["b"]
    assert mine.read_bytes() == b"drawn by hand"


def test_results_do_not_go_where_the_scans_of_the_case_are(
    predict: Predict, tmp_path: Path
) -> None:
    places = {"a": tmp_path / "a", "b": tmp_path, "c": tmp_path / "c" / "anat"}
    cases = [(name, Loader(lambda name=name: case(name), at)) for name, at in places.items()]
    summary = predict(tmp_path, [*cases, ("d", Loader(lambda: case("d"), tmp_path / "e"))])
    assert [(f.scan, f.stage) for f in summary.failures] == [(n, "name") for n in "abc"]
    assert summary.done == ["d"]


def at(place: Path, name: str, size: int = 3, *, load: Callable[[], Case] | None = None):
    return name, Loader(load or (lambda: case(name, size)), place)


@pytest.mark.parametrize("resume", [True, False])
def test_results_of_scans_elsewhere_are_not_replaced_unless_the_scans_are_the_same(
    predict: Predict, tmp_path: Path, resume: bool
) -> None:
    out, first, second = tmp_path / "out", tmp_path / "A", tmp_path / "B"
    predict(out, [at(first, "a")])
    before = stamps(out)
    for net in (model(), model(0.6)):
        for load in (lambda: case("a", 5), broken):
            summary = predict(out, [at(second, "a", load=load)], net=net, resume=resume)
            stages = [failure.stage for failure in summary.failures]
            assert stages == ["load" if load is broken else "name"]
            assert stamps(out) == before
    moved = predict(out, [at(second, "a")], resume=resume)
    assert (moved.skipped if resume else moved.done) == ["a"]
    # Changed where it was, it is the same case.
    place = first if resume else second
    assert predict(out, [at(place, "a", 5)], resume=resume).done == ["a"]
    shutil.rmtree(out / "a")
    assert predict(out, [at(tmp_path / "C", "a", 4)], resume=resume).done == ["a"]


def test_tables_keep_the_cases_of_earlier_calls(
    predict: Predict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def table(name: str, key: str) -> list[str]:
        return [row[key] for row in read_table(tmp_path / name)]

    predict(tmp_path, [*items("b", "e"), ("c", broken), ("x", broken)])
    predict(tmp_path, [*items("d", "c"), ("y", broken)])
    assert table("cohort.tsv", "case") == list("dcbe")
    assert table("failures.tsv", "scan") == ["y", "x"]
    assert "several models" not in caplog.text
    shutil.rmtree(tmp_path / "e")
    predict(tmp_path, items("d"), net=model(0.6))
    assert table("cohort.tsv", "case") == list("dbc")
    models = table("cohort.tsv", "model")
    assert models[1] == models[2] != models[0] == model(0.6).fingerprint()[:12]
    assert "several models" in caplog.text


def test_two_runs_on_one_folder_write_a_case_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, at_work, seen = batch_run.write_prediction, list[str](), list[int]()
    both = threading.Event()

    def write(prediction, *others, **more):
        at_work.append(prediction.identifier)
        if len(at_work) == 2:
            both.set()
        both.wait(0.5)
        paths = real(prediction, *others, **more)
        seen.append(len(at_work))
        at_work.pop()
        return paths

    monkeypatch.setattr(batch_run, "write_prediction", write)
    nets = [model(0.5), model(0.6)]
    results = {"out": tmp_path, "settings": SETTINGS, "read_ahead": 0}
    runs = [
        threading.Thread(target=run_batch, args=[items("a")], kwargs={"model": net, **results})
        for net in nets
    ]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    monkeypatch.undo()
    assert seen == [1, 1]
    last = json.loads((tmp_path / "a" / "a.json").read_text())["provenance"]["model_sha256"]
    (net,) = (net for net in nets if net.fingerprint() == last)
    assert run_batch(items("a"), model=net, **results).skipped == ["a"]


@pytest.mark.parametrize("stage", ["load", "predict", "write"])
def test_after_a_failure_no_earlier_models_files_pass_for_this_ones(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    predict(tmp_path, items("a", "b"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    real = batch_run.write_prediction

    def torn(prediction, *others, **more):
        if stage == "write" and prediction.identifier == "a":
            raise OSError("disk full")
        return real(prediction, *others, **more)

    def look(net, prepared, **more):
        if stage == "predict" and prepared.identifier == "a":
            raise MemoryError
        return real_look(net, prepared, **more)

    real_look = batch_run.observe
    monkeypatch.setattr(batch_run, "write_prediction", torn)
    monkeypatch.setattr(batch_run, "observe", look)
    cases = [("a", broken), *items("b")] if stage == "load" else items("a", "b")
    summary = predict(tmp_path, cases, net=model(0.6))
    assert [(f.scan, f.stage) for f in summary.failures] == [("a", stage)]
    assert summary.done == ["b"]
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "ledger" / "a.json").exists()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "stale" / "a" / "1").iterdir()}
    assert kept == before


def test_a_scan_that_cannot_be_read_keeps_the_files_of_this_model(
    predict: Predict, tmp_path: Path
) -> None:
    predict(tmp_path, items("a"))
    before = stamps(tmp_path)
    assert len(predict(tmp_path, [("a", broken)]).failures) == 1
    assert stamps(tmp_path) == before
    assert predict(tmp_path, items("a")).skipped == ["a"]


def test_a_changed_scan_that_fails_keeps_no_files_of_what_it_was(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    predict(tmp_path, items("a"))
    monkeypatch.setattr(batch_run, "observe", fail)
    assert len(predict(tmp_path, [("a", lambda: case("a", size=5))]).failures) == 1
    assert not (tmp_path / "a").exists()


def test_what_was_made_of_other_code_is_done_again(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(tmp_path, items("a"))
    written = json.loads((tmp_path / "a" / "a.json").read_text())
    assert written["provenance"]["results"] == batch_run.RESULTS
    monkeypatch.setattr(batch_run, "RESULTS", batch_run.RESULTS + 1)
    assert predict(tmp_path, items("a")).done == ["a"]


def test_an_interruption_leaves_whole_files_and_tables_and_can_be_resumed(
    predict: Predict, tmp_path: Path
) -> None:
    def stop() -> Case:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, [*items("a"), ("b", broken), ("c", stop), *items("d")])
    assert [row["case"] for row in read_table(tmp_path / "cohort.tsv")] == ["a"]
    assert [row["scan"] for row in read_table(tmp_path / "failures.tsv")] == ["b"]
    summary = predict(tmp_path, items("a", "b", "c", "d"))
    assert (summary.skipped, summary.done) == (["a"], ["b", "c", "d"])


def test_an_interruption_while_writing_is_not_taken_for_a_result(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(tmp_path, items("a"))
    real = batch_run.write_prediction

    def torn(prediction, folder, **more):
        real(prediction, folder, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_run, "write_prediction", torn)
    changed = [("a", lambda: case("a", size=5))]
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, changed)
    monkeypatch.undo()
    assert predict(tmp_path, changed).done == ["a"]
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("read_ahead", [0, 1, 2])
def test_no_more_cases_are_read_ahead_than_was_said(tmp_path: Path, read_ahead: int) -> None:
    network, ahead = Above(), []

    def load(name: str) -> Case:
        ahead.append("abcde".index(name) - network.calls)
        return case(name)

    cases = ((name, lambda name=name: load(name)) for name in "abcde")
    net = Model(network, model().spec)
    run_batch(cases, model=net, out=tmp_path, settings=SETTINGS, read_ahead=read_ahead)
    assert len(ahead) == 5
    assert 0 <= min(ahead) <= max(ahead) <= read_ahead


def test_reading_ahead_changes_no_byte(tmp_path: Path) -> None:
    cases = [*items("a"), ("b", broken), *items("c", "d"), ("e", lambda: case("e", size=5))]
    contents = []
    for read_ahead in (0, 1, 3):
        out = tmp_path / str(read_ahead)
        run_batch(cases, model=model(), out=out, settings=SETTINGS, read_ahead=read_ahead)
        files = (path for path in out.rglob("*") if path.is_file())
        contents.append({path.relative_to(out): path.read_bytes() for path in files})
    assert len(contents[0]) > 20
    assert contents[0] == contents[1] == contents[2]


def test_rows_and_words_come_in_the_order_of_the_cases(predict: Predict, tmp_path: Path) -> None:
    predict(tmp_path, items("b", "e"))
    cases = [*items("d"), ("c", broken), *items("b", "a"), ("0", broken), *items("e", "f")]
    told: list[tuple[str, str]] = []
    summary = predict(tmp_path, cases, on_finished=lambda *what: told.append(what))
    assert (summary.done, summary.skipped) == (["d", "a", "f"], ["b", "e"])
    assert [failure.scan for failure in summary.failures] == ["c", "0"]
    assert [row["case"] for row in read_table(tmp_path / "cohort.tsv")] == list("dbaef")
    assert [scan for scan, _ in told] == list("dcba0ef")


def test_a_scan_that_cannot_be_written_costs_that_scan_alone(
    predict: Predict, tmp_path: Path
) -> None:
    (tmp_path / "b").write_text("in the way")
    summary = predict(tmp_path, items("a", "b", "c"))
    assert summary.done == ["a", "c"]
    assert [(f.scan, f.stage) for f in summary.failures] == [("b", "write")]
    assert not (tmp_path / "ledger" / "b.json").exists()


def test_nothing_is_recorded_before_its_files_are_whole(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, recorded = batch_run.Ledger.record, []

    def record(self, identifier, *, outputs, **others) -> None:
        recorded.append(identifier)
        assert len(outputs) == 4
        assert all(path.is_file() for path in outputs)
        assert not list((tmp_path / identifier).glob(".*"))
        real(self, identifier, outputs=outputs, **others)

    monkeypatch.setattr(batch_run.Ledger, "record", record)
    assert predict(tmp_path, items("a", "b")).done == recorded == ["a", "b"]


@pytest.mark.parametrize("stage", ["load", "write"])
def test_the_log_has_the_traceback_of_an_error_in_a_thread(
    predict: Predict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
) -> None:
    def deep_in_the_thread(*_: object, **__: object) -> Case:
        raise KeyError("surprise")

    if stage == "write":
        monkeypatch.setattr(batch_run, "write_prediction", deep_in_the_thread)
    with caplog.at_level(logging.DEBUG, logger="medseg"):
        summary = predict(tmp_path, [("a", deep_in_the_thread)] if stage == "load" else items("a"))
    assert [failure.stage for failure in summary.failures] == [stage]
    assert f"a failed at stage {stage}: 'surprise'" in caplog.text
    assert "in deep_in_the_thread" in caplog.text


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_writer_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    real_write, real_predict = batch_run.write_prediction, batch_run.observe
    at_work, stopped = threading.Event(), threading.Event()

    def write(prediction, *others, **more):
        assert at_work.wait(20)
        signal.pthread_kill(threading.main_thread().ident or 0, kind)
        assert stopped.wait(20)
        return real_write(prediction, *others, **more)

    def work(model, prepared, **more):
        if prepared.identifier == "b":
            try:
                at_work.set()
                for _ in range(2000):  # a signal just before one long wait is seen after it
                    time.sleep(0.01)
            finally:
                stopped.set()
        return real_predict(model, prepared, **more)

    monkeypatch.setattr(batch_run, "write_prediction", write)
    monkeypatch.setattr(batch_run, "observe", work)
    before = signal.signal(kind, stop)
    try:
        with pytest.raises(Stopped):
            run_batch(items("a", "b", "c"), model=model(), out=tmp_path, settings=SETTINGS)
    finally:
        signal.signal(kind, before)
    monkeypatch.undo()
    assert [row["case"] for row in read_table(tmp_path / "cohort.tsv")] == ["a"]
    assert read_table(tmp_path / "failures.tsv") == []
    assert not list(tmp_path.rglob("*.part*"))
    summary = run_batch(items("a", "b", "c"), model=model(), out=tmp_path, settings=SETTINGS)
    assert (summary.skipped, summary.done) == (["a"], ["b", "c"])


def test_what_was_read_ahead_and_dropped_keeps_its_old_result(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(tmp_path, items("a", "b"))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_run, "observe", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, items("a", "b"), resume=False)
    monkeypatch.undo()
    summary = predict(tmp_path, items("a", "b"))
    assert (summary.done, summary.skipped) == ([], ["a", "b"])


def test_the_parts_of_the_time_are_within_the_whole(
    predict: Predict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="medseg"):
        seconds = dict(predict(tmp_path, [*items("a"), ("b", broken), *items("c")]).seconds)
    total = seconds.pop("total")
    assert set(seconds) == {"predict", "wait_read", "wait_write"}
    assert min(seconds.values()) >= 0
    assert 0 < sum(seconds.values()) <= total
    told = [record.message for record in caplog.records if " waited " in record.message]
    assert [message.split(":")[0] for message in told] == ["a", "c"]
    assert caplog.records[-1].message.startswith(f"the batch took {total:.1f} s: ")


def test_an_empty_batch_has_empty_tables(predict: Predict, tmp_path: Path) -> None:
    summary = predict(tmp_path, [])
    assert summary.total == 0
    assert set(summary.seconds) == {"total", "predict", "wait_read", "wait_write"}
    assert read_table(tmp_path / "cohort.tsv") == []


def test_reading_ahead_by_less_than_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="read_ahead is -1"):
        run_batch(items("a"), model=model(), out=tmp_path, read_ahead=-1)
