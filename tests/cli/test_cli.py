"""The command line, from arguments to exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
import yaml

from medseg import __version__
from medseg.cli import session
from medseg.cli.main import COMMANDS, main
from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError, DataError, LabelError, ModelError, ScanError, TrainingError
from medseg.inference.ensemble import members_of
from medseg.inference.model import Model, ModelSpec, load_model
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.priors import compare
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.training.transfer import new_network

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
SHAPE = (20, 22, 18)


def run(*argv: object) -> int:
    return main([str(part) for part in argv])


def save_model(
    folder: Path, *, seed: int = 0, channels: tuple[str, ...] = ("flair", "t1c"), width: int = 4
) -> Path:
    regions = RegionSettings(names=("core", "whole"))
    architecture = UNetSettings(in_channels=len(channels), out_channels=2, widths=(width, width))
    spec = ModelSpec(
        architecture=architecture,
        channels=channels,
        regions=regions,
        region_definition={"core": (1, 3, 4), "whole": (1, 2, 3, 4)},
        preprocess=PreprocessSettings(spacing_mm=None),
        method="test",
    )
    Model(new_network(architecture, seed=seed), spec).save(folder)
    return folder


def write_volume(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def write_case(folder: Path, *, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    head = np.zeros(SHAPE, dtype=np.float32)
    head[3:-3, 3:-3, 3:-3] = 100 + 10 * rng.standard_normal((14, 16, 12))
    write_volume(folder / "flair.nii.gz", head)
    write_volume(folder / "t1c.nii.gz", head * 0.5)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "one")


def tiny_config(folder: Path, **changes: object) -> Path:
    training = {"steps": 2, "device": "cpu", "precision": "float32", "log_every": 1}
    phantom = {"n_subjects": 1, "spacing_mm": 10.0}
    values = {
        "title": "tiny",
        "sources": {
            "own": [
                {"kind": "phantom", "settings": {"disease": "tumour", "seed": 3, **phantom}},
            ]
        },
        "target": {
            "kind": "phantom",
            "settings": {"disease": "tumour", "preset": "target", **phantom},
        },
        "arms": [{"method": {"method": "ri"}}],
        "protocol": {
            "preprocess": {"spacing_mm": [10.0, 10.0, 10.0]},
            "patch": {"size": [16, 16, 16], "batch_size": 1},
            "members": 2,
            "source_training": training,
            "target_training": training,
        },
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# --- exit codes, streams, start -------------------------------------------------------------------


def test_help_and_version_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr()
    assert all(name in shown.out for name in COMMANDS)
    assert shown.err == ""
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["predict"],
        ["predict", "a", "b", "c", "--samples", "0"],
        ["--nonsense"],
        ["report", "--nonsense"],
        ["experiment", "no-such-config", "out"],
        ["fit-prior", "kernels", "--out", "prior", "--kind", "magic"],
        ["fit-prior", "kernels", "--out", "prior", "--extend", "old", "--kind", "boovae"],
        ["fit-prior", "kernels", "--out", "prior", "--extend", "old", "--set", "latent=3"],
        ["harvest", "model", "--out", "k", "--prune", "2"],
        ["evaluate", ".", ".", "--out", "x.tsv", "--labels", "one"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_explained_on_stderr(
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip()) > 10
    assert "unforeseen" not in shown.err
    assert "Traceback" not in shown.err


def test_no_arguments_show_the_help() -> None:
    assert run() == 2


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (ModelError("a"), 2),
        (DataError("a"), 4),
        (ScanError("a"), 4),
        (LabelError("a"), 4),
        (TrainingError("a"), 1),
        (KeyError("a"), 1),
        (OSError("a"), 1),
        (typer.Exit(3), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_have_exit_codes(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.run(app_that_raises(error), []) == code
    assert capsys.readouterr().out == ""


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.run(app_that_raises(KeyError("k")), []) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(session.SESSION, "debug", True)
    assert session.run(app_that_raises(KeyError("k")), []) == 1
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_unwinds_and_is_143() -> None:
    app, unwound = typer.Typer(), []

    @app.command()
    def wait() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            unwound.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert session.run(app, []) == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_line_runs_outside_the_first_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run("--version")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys\n"
        "from medseg.cli.main import main\n"
        "code = main(['--help'])\n"
        "sys.exit(code or 10 * ('torch' in sys.modules or 'numpy' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# --- predict --------------------------------------------------------------------------------------


def test_predict_goes_on_after_a_broken_case(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, out = tmp_path / "cases", tmp_path / "out"
    for number, name in enumerate(("a", "b", "c")):
        write_case(cases / name, seed=number)
    whole = (cases / "b" / "t1c.nii.gz").read_bytes()
    (cases / "b" / "t1c.nii.gz").write_bytes(whole[: len(whole) // 2])
    before = {p: p.read_bytes() for p in cases.rglob("*.gz")}
    assert run("predict", model, cases, out, "--samples", 2, "--device", "cpu") == 3
    shown = capsys.readouterr()
    assert "2 done, 0 done before, 1 failed" in shown.out
    assert shown.out.startswith("b\tload\t")
    assert "b failed at stage load" in shown.err
    rows = read_table(out / "failures.tsv")
    assert [(row["scan"], row["stage"]) for row in rows] == [("b", "load")]
    assert "t1c.nii.gz" in rows[0]["reason"]
    for name in ("a", "c"):
        mask = nib.load(out / name / f"{name}_mask.nii.gz")
        assert mask.shape == SHAPE
        assert np.array_equal(mask.affine, AFFINE)
    assert not (out / "b").exists()
    assert {p: p.read_bytes() for p in cases.rglob("*.gz")} == before
    assert "b failed" in (out / "medseg.log").read_text()
    # Mended and run again, only what is missing is done.
    write_case(cases / "b")
    assert run("predict", model, cases, out, "--samples", 2, "--device", "cpu") == 0
    assert "1 done, 2 done before, 0 failed" in capsys.readouterr().out


def test_predict_takes_one_case_folder_and_ignores_its_neighbours_and_masks(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tmp_path / "cases"
    case = write_case(cases / "p1")
    write_volume(case / "seg.nii.gz", np.full(SHAPE, 77, dtype=np.int16))
    (cases / "p2").mkdir()
    for name in ("flair.nii.gz", "x_flair.nii.gz"):  # two claim one role: another case's fault
        shutil.copy(case / "flair.nii.gz", cases / "p2" / name)
    assert run("predict", model, case, tmp_path / "out", "--device", "cpu") == 0
    assert [row["case"] for row in read_table(tmp_path / "out" / "cohort.tsv")] == ["p1", "p1"]
    monkeypatch.chdir(case)
    assert run("predict", model, ".", tmp_path / "here", "--device", "cpu") == 0
    assert (tmp_path / "here" / "p1" / "p1.json").is_file()
    assert run("predict", model, cases, tmp_path / "all", "--device", "cpu") == 3
    assert [row["scan"] for row in read_table(tmp_path / "all" / "failures.tsv")] == ["p2"]


def test_predict_takes_one_file_for_a_model_of_one_channel(tmp_path: Path, model: Path) -> None:
    single = save_model(tmp_path / "model", channels=("flair",))
    scan = write_case(tmp_path / "p1") / "flair.nii.gz"
    assert run("predict", single, scan, tmp_path / "out", "--device", "cpu") == 0
    assert (tmp_path / "out" / "p1_flair" / "p1_flair_mask.nii.gz").is_file()
    assert run("predict", model, scan, tmp_path / "no") == 4


def test_predict_without_anything_usable_is_4(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("predict", model, empty, tmp_path / "o1") == 4
    assert run("predict", model, tmp_path / "absent", tmp_path / "o2") == 4
    write_volume(tmp_path / "named" / "case" / "scan.nii.gz", np.ones(SHAPE, dtype=np.float32))
    assert run("predict", model, tmp_path / "named", tmp_path / "o3") == 4
    assert "Hint: Name files such as flair.nii.gz" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    for name in ("flair.nii.gz", "t1c.nii.gz"):
        (tmp_path / "bad" / name).write_bytes(b"not a scan")
    assert run("predict", model, tmp_path / "bad", tmp_path / "o4") == 4
    assert len(read_table(tmp_path / "o4" / "failures.tsv")) == 1


def test_predict_without_a_model_or_a_place_to_write_is_2(tmp_path: Path, model: Path) -> None:
    case = write_case(tmp_path / "p1")
    assert run("predict", tmp_path / "absent", case, tmp_path / "out") == 2
    (tmp_path / "file").write_text("x")
    assert run("predict", model, case, tmp_path / "file") == 2


def test_quiet_shows_no_progress_and_the_log_keeps_it(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path / "p1")
    assert run("--quiet", "predict", model, case, tmp_path / "q", "--device", "cpu") == 0
    assert capsys.readouterr().err == ""
    assert "p1 done" in (tmp_path / "q" / "medseg.log").read_text()
    assert run("predict", model, case, tmp_path / "l", "--device", "cpu") == 0
    assert "p1 done" in capsys.readouterr().err
    assert "l/p1" not in (tmp_path / "q" / "medseg.log").read_text()
    assert (tmp_path / "q" / "medseg.log").read_text().count("p1 done") == 1


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate_counts_a_missing_prediction_as_the_worst(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[5:9, 5:9, 5:9] = 1
    truth[12:14, 5:9, 5:9] = 2
    for name in ("a", "b", "c"):
        write_volume(tmp_path / "truth" / f"{name}.nii.gz", truth)
    write_volume(tmp_path / "found" / "a.nii.gz", truth)
    write_volume(tmp_path / "found" / "b" / "b_mask.nii.gz", truth)
    table = tmp_path / "scores.tsv"
    assert run("evaluate", tmp_path / "found", tmp_path / "truth", "--out", table) == 0
    rows = {row["case"]: row for row in read_table(table)}
    assert [float(rows[name]["dsc"]) for name in "abc"] == [1.0, 1.0, 0.0]
    assert [float(rows[name]["missing"]) for name in "abc"] == [0, 0, 1]
    assert "dsc\t0.6667\tn=3\tmissing=1" in capsys.readouterr().out.splitlines()
    assert {row["case"] for row in read_table(tmp_path / "scores_lesions.tsv")} == {"a", "b"}
    argv = ("evaluate", tmp_path / "found", tmp_path / "truth", "--out", table, "--labels", "2")
    assert run(*argv) == 0
    one = float(read_table(table)[0]["reference_volume_ml"])
    assert one == pytest.approx(2 * 4 * 4 * 6**3 / 1000)


def test_evaluate_refuses_folders_that_are_not_there_and_other_grids(tmp_path: Path) -> None:
    truth = np.ones(SHAPE, dtype=np.uint8)
    truth[0] = 0
    write_volume(tmp_path / "truth" / "a.nii.gz", truth)
    (tmp_path / "none").mkdir()
    out = ("--out", tmp_path / "x.tsv")
    assert run("evaluate", tmp_path / "typo", tmp_path / "truth", *out) == 4
    assert run("evaluate", tmp_path / "truth", tmp_path / "none", *out) == 4
    (tmp_path / "found").mkdir()
    assert run("evaluate", tmp_path / "found", tmp_path / "truth", *out) == 4
    write_volume(tmp_path / "found" / "a.nii.gz", truth[1:])
    assert run("evaluate", tmp_path / "found", tmp_path / "truth", *out) == 3


# --- train, harvest, fit-prior, finetune ----------------------------------------------------------


def test_train_harvest_fit_and_finetune(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The comparison has a test of its own.
    monkeypatch.setattr(compare, "compare_priors", lambda kernels, **_: [])
    config = tiny_config(tmp_path)
    assert run("train", config, tmp_path / "t", "--source", "other") == 2
    capsys.readouterr()
    assert run("train", config, tmp_path / "t") == 0
    members = capsys.readouterr().out.split()
    assert [Path(folder).name for folder in members] == ["member_0", "member_1"]
    stamps = [(Path(folder) / "model.json").stat().st_mtime_ns for folder in members]
    assert run("train", config, tmp_path / "t") == 0
    assert [(Path(folder) / "model.json").stat().st_mtime_ns for folder in members] == stamps
    capsys.readouterr()

    kernels, prior = tmp_path / "kernels", tmp_path / "prior"
    assert run("harvest", *members, "--out", kernels) == 0
    loaded = KernelSet.load(kernels)
    assert capsys.readouterr().out == f"{len(loaded)} kernels of 2 networks: {kernels}\n"

    assert run("fit-prior", kernels, "--out", prior, "--kind", "gaussian") == 0
    assert LayerPriors.load(prior) is not None
    rbm = ("--kind", "rbm", "--grouping", "group", "--set", "model.sample_sweeps=4")
    steps = ("--set", "model.contrastive.fit.max_steps=5")
    assert run("fit-prior", kernels, "--out", tmp_path / "rbm", *rbm, *steps) == 0
    assert not LayerPriors.load(tmp_path / "rbm").is_normalised

    base = ("finetune", config, "--source", members[0])
    assert run("finetune", config, "--method", "pr", "--out", tmp_path / "x") == 2
    fewer = "target.settings.n_subjects=2"
    assert run(*base, fewer, "--out", tmp_path / "usual") == 0
    usual = load_model(tmp_path / "usual")
    assert usual.spec.method == "gaussian_back0+0.25+0.5+0.75+1_x3"
    assert len(members_of(usual.network)) == 15
    assert usual.spec.intensities is not None
    beside = ("--objective", "privileged", "--set", "objective.channels=[t1c]")
    assert run(*base, fewer, *beside, "--out", tmp_path / "beside") == 0
    assert load_model(tmp_path / "beside").spec.method == "wise_x5_privileged"
    assert run(*base, fewer, "--method", "auto", "--out", tmp_path / "auto") == 0
    assert load_model(tmp_path / "auto").spec.method == "auto_x5"
    tried = read_table(tmp_path / "auto" / "choice.tsv")
    best = min(tried, key=lambda row: float(row["nll_nats"]))
    spec = json.loads((tmp_path / "auto" / "model.json").read_text())["spec"]
    assert spec["temperature"] == pytest.approx(float(best["temperature"]), rel=1e-4)
    assert spec["patch"] == [16, 16, 16]
    assert run(*base, "--method", "dwp", "--out", tmp_path / "x") == 2
    assert not (tmp_path / "x" / "model.json").exists()
    assert run("finetune", config, "--method", "ri", "--out", tmp_path / "ri") == 0
    assert run(*base, "--method", "pr", "--out", tmp_path / "pr") == 0
    options = ("--method", "dwp", "--set", "elbo.kl_fraction=0.1")
    argv = (*base, "--prior", prior, "--out", tmp_path / "dwp", *options)
    assert run(*argv, "protocol.target_training.steps=1") == 0
    argv = (*base, "--prior", tmp_path / "rbm", "--out", tmp_path / "rbm_model", *options)
    assert run(*argv, "protocol.target_training.steps=1") == 0
    (row,) = read_table(tmp_path / "rbm_model" / "history.tsv")
    assert "kl_minus_log_z_nats" in row
    assert "kl_nats" not in row
    models = {name: load_model(tmp_path / name) for name in ("ri", "pr", "dwp")}
    assert [m.spec.method for m in models.values()] == ["ri", "pr", "dwp"]
    assert models["dwp"].spec.variational is not None
    assert models["dwp"].spec.training["prior_hash"] == LayerPriors.load(prior).hash
    start = dict(load_model(Path(members[0])).network.named_parameters())

    def moved(name: str) -> float:
        now = dict(models[name].network.named_parameters())
        return sum(float((now[key] - value).detach().norm()) for key, value in start.items())

    assert moved("pr") < 0.5 * moved("ri"), "pr starts at the source, ri does not"
    assert [row["step"] for row in read_table(tmp_path / "pr" / "history.tsv")][-1] == "2"


def test_priors_from_tiny_networks_are_compared_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The autoencoders of the comparison are tested with the priors; here the Gaussians will do.
    compared = {name: s for name, s in compare.COMPARED.items() if s.kind != "vae"}
    monkeypatch.setattr(compare, "COMPARED", compared)
    folders = [save_model(tmp_path / f"m{seed}", seed=seed, width=16) for seed in (0, 1)]
    weights = load_model(folders[0]).network.parameters()
    whole = 2 * sum(w.shape[0] * w.shape[1] for w in weights if w.ndim == 5 and w.shape[-1] == 3)
    assert run("harvest", *folders, "--out", tmp_path / "k", "--prune", "0.25") == 0
    assert len(KernelSet.load(tmp_path / "k")) == pytest.approx(0.75 * whole, rel=0.02)
    capsys.readouterr()
    argv = ("fit-prior", tmp_path / "k", "--out", tmp_path / "p", "--kind", "diagonal")
    assert run(*argv, "--grouping", "group") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "kind\tgrouping\tnats per kernel\tn\theld out"
    assert {tuple(line.split("\t")[:2]) for line in lines[1:]} >= {
        ("diagonal", "layer"),
        ("gaussian", "layer"),
    }
    assert all(np.isfinite(float(line.split("\t")[2])) for line in lines[1:])


def test_harvest_of_networks_that_differ_is_2(tmp_path: Path) -> None:
    one = save_model(tmp_path / "one")
    two = save_model(tmp_path / "two", channels=("flair",))
    assert run("harvest", one, two, "--out", tmp_path / "k") == 2


# --- report, experiment ---------------------------------------------------------------------------


def test_report_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", tmp_path) == 4
    assert "run.json" in capsys.readouterr().err


def test_report_of_a_run_prints_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps({"title": "A run", "regions": ["whole"], "modalities": ["flair"], "seed": 0})
    )
    rows = ["method\tsource\tn\tsubset\tseed\tcase\tsubject\tregion\tdsc"]
    rows += [f"ri\tnone\t1\t0\t0\tc{i}\tc{i}\twhole\t0.{i + 4}" for i in range(3)]
    (tmp_path / "scores.tsv").write_text("\n".join(rows) + "\n")
    assert run("report", tmp_path) == 0
    out = capsys.readouterr().out
    assert f"report: {tmp_path / 'report.html'}" in out
    assert "0.5" in out
    assert (tmp_path / "report.html").is_file()


def test_experiment_with_wrong_settings_makes_no_folder(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert run("experiment", config, tmp_path / "run", "protocol.sed=1") == 2
    assert run("experiment", config, tmp_path / "run", "--shard", "3/2") == 2
    assert not (tmp_path / "run" / "scores.tsv").exists()
    assert run("experiment", config, tmp_path / "run", "protocol.few_shot.sizes=[9]") == 4
