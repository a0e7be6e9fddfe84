"""How ``medseg predict`` is asked for speed and memory, and what it loads to start."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.cli.main import main
from medseg.data.regions import RegionSettings
from medseg.inference.model import Model, ModelSpec
from medseg.io.atomic import read_table
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.training.transfer import new_network

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
SHAPE = (20, 22, 18)


def run(*argv: object) -> int:
    return main([str(part) for part in argv])


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "quick"
    architecture = UNetSettings(in_channels=1, out_channels=1, widths=(4, 4))
    spec = ModelSpec(
        architecture=architecture,
        channels=("flair",),
        regions=RegionSettings(names=("whole",)),
        region_definition={"whole": (1,)},
        preprocess=PreprocessSettings(spacing_mm=None),
        method="test",
    )
    Model(new_network(architecture, seed=0), spec).save(folder)
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    head = np.zeros(SHAPE, dtype=np.float32)
    head[3:-3, 3:-3, 3:-3] = 100 + 10 * np.random.default_rng(0).standard_normal((14, 16, 12))
    path = tmp_path / "case" / "flair.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(head, AFFINE), path)
    return path


@pytest.mark.parametrize("is_guessed", [False, True])
def test_a_guessed_affine_is_told_and_passed_on_as_a_guess(
    is_guessed: bool, scan: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_guessed:
        image = nib.nifti1.load(scan)
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
        bare = nib.Nifti1Image(image.dataobj, None, image.header)
        scan.write_bytes(gzip.compress(bare.to_bytes()))
    out = tmp_path / "out"
    assert run("predict", model, scan, out, "--device", "cpu") == 0
    said = "flair.nii.gz: neither sform nor qform is set"
    assert (out / "medseg.log").read_text().count(said) == is_guessed
    assert (said in capsys.readouterr().err) == is_guessed
    (about,) = out.glob("*_flair/*_flair.json")
    assert json.loads(about.read_text())["affine_is_guessed"] == is_guessed
    header = nib.nifti1.load(about.with_name(f"{about.stem}_mask.nii.gz")).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == (0 if is_guessed else 2)


@pytest.mark.parametrize(
    "options",
    [
        ("--profile", "fast"),
        ("--profile", "best"),
        ("--engine", "eager"),
        ("--engine", "torch", "--memory", "2GiB"),
    ],
    ids=" ".join,
)
def test_speed_and_memory_are_asked_for_and_kept_with_the_result(
    options: tuple[str, ...], scan: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("predict", model, scan, out, "--device", "cpu", *options) == 0
    written = json.loads((out / "case_flair" / "case_flair.json").read_text())["provenance"][
        "settings"
    ]
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option != "--memory":
            assert written[option.removeprefix("--")] == value
    assert written["memory_gib"] == (2.0 if "--memory" in options else None)
    assert "windows of" in (out / "medseg.log").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "4"),
        ("--memory", "much"),
        ("--profile", "fastest"),
        ("--engine", "steam"),
        ("--posterior", "half"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_asked_for_is_wrong_usage(
    options: tuple[str, str],
    scan: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("predict", model, scan, tmp_path / "out", *options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert options[1] in shown.err


def test_too_little_memory_is_one_cases_failure_and_names_what_is_needed(
    scan: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("predict", model, scan, out, "--device", "cpu", "--memory", "100M") == 4
    (row,) = read_table(out / "failures.tsv")
    assert row["stage"] == "load"
    assert "GiB" in row["reason"]
    assert "GiB or more" in row["hint"]


def test_a_volume_that_cannot_fit_is_refused_before_a_voxel_is_read(
    scan: Path, model: Path, tmp_path: Path
) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((1100, 1100, 1100))
    header.set_sform(np.eye(4), 1)
    # Five gigabytes were promised; there is nothing behind the header.
    content = gzip.compress(header.binaryblock + b"\0" * 4)
    (tmp_path / "case" / "huge").mkdir()
    (tmp_path / "case" / "huge" / "flair.nii.gz").write_bytes(content)
    good = tmp_path / "case" / "small" / "flair.nii.gz"
    good.parent.mkdir()
    scan.rename(good)
    out = tmp_path / "out"
    options = ("--device", "cpu", "--memory", "4G")
    assert run("predict", model, tmp_path / "case", out, *options) == 3
    (row,) = read_table(out / "failures.tsv")
    assert (row["scan"], row["stage"]) == ("huge", "load")
    assert "1,331,000,000 voxels" in row["reason"]
    assert (out / "small" / "small_mask.nii.gz").is_file()


def test_a_case_without_brain_is_named_in_the_table(model: Path, tmp_path: Path) -> None:
    speck = np.zeros(SHAPE, dtype=np.float32)
    speck[4, 4, 4] = 1
    path = tmp_path / "flair.nii.gz"
    nib.save(nib.Nifti1Image(speck, AFFINE), path)
    assert run("predict", model, path, tmp_path / "out", "--device", "cpu") == 4
    (row,) = read_table(tmp_path / "out" / "failures.tsv")
    assert row["stage"] == "prepare"
    assert "no brain found" in row["reason"]


def test_what_medseg_did_not_write_is_never_replaced(
    scan: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for place in (data, out):
        (place / "P01").mkdir(parents=True)
        (place / "P01" / "P01_mask.nii.gz").write_bytes(b"drawn by hand")
    scan.rename(data / "P01" / "flair.nii.gz")
    (tmp_path / "link").symlink_to(data)
    argv = ("predict", model, data)
    cases = [(*argv, data), (*argv, data / "new"), (*argv, tmp_path / "link"), (*argv, out)]
    cases += [("predict", model, data / "P01", place) for place in (data, tmp_path / "link", out)]
    for words in cases:
        assert run(*words, "--device", "cpu") == 2
        assert "Hint: Choose another output folder" in capsys.readouterr().err
    for place in (data, out):
        assert (place / "P01" / "P01_mask.nii.gz").read_bytes() == b"drawn by hand"
        assert not (place / "P01" / "P01.json").exists()
    assert not (data / "new").exists()


def test_people_whose_scans_have_one_name_are_told_apart(
    scan: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for person in "AB":
        place = tmp_path / person / "ses-01"
        place.mkdir(parents=True)
        shutil.copy(scan, place / "flair.nii.gz")
        for input in (place, place / "flair.nii.gz", tmp_path / person):
            assert run("predict", model, input, out, "--device", "cpu") == 0
    cases = ["A_ses-01", "A_ses-01_flair", "B_ses-01", "B_ses-01_flair"]
    assert sorted(row["case"] for row in read_table(out / "cohort.tsv")) == cases
    assert all((out / case / f"{case}_mask.nii.gz").is_file() for case in cases)


def test_another_persons_results_are_never_replaced(
    scan: Path, model: Path, tmp_path: Path
) -> None:
    out, first, second = tmp_path / "out", tmp_path / "A" / "P01", tmp_path / "B" / "P01"
    for place in (first, second):
        place.mkdir(parents=True)
        shutil.copy(scan, place / "flair.nii.gz")
    head = nib.load(scan)
    nib.save(nib.Nifti1Image(head.get_fdata() * 2, AFFINE), second / "flair.nii.gz")
    assert run("predict", model, first, out, "--device", "cpu") == 0
    before = (out / "P01" / "P01_prob.nii.gz").read_bytes()
    assert run("predict", model, second, out, "--device", "cpu") == 4
    (row,) = read_table(out / "failures.tsv")
    assert (row["scan"], row["stage"]) == ("P01", "name")
    assert str(first) in row["reason"]
    assert str(second) in row["reason"]
    assert (out / "P01" / "P01_prob.nii.gz").read_bytes() == before
    assert [row["case"] for row in read_table(out / "cohort.tsv")] == ["P01"]


def test_a_name_that_no_file_can_have_costs_its_case_alone(
    scan: Path, model: Path, tmp_path: Path
) -> None:
    for name in ("good", "odd*"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(scan, tmp_path / "data" / name)
    out = tmp_path / "out"
    assert run("predict", model, tmp_path / "data", out, "--device", "cpu") == 3
    assert [row["scan"] for row in read_table(out / "failures.tsv")] == ["odd*"]


def test_what_medseg_wrote_is_replaced(scan: Path, model: Path, tmp_path: Path) -> None:
    argv = ("predict", model, scan.parent, tmp_path / "out", "--device", "cpu")
    assert run(*argv) == 0
    mask = tmp_path / "out" / "case" / "case_mask.nii.gz"
    first = mask.read_bytes()
    assert run(*argv, "--seed", 1) == 0
    assert not (tmp_path / "out" / "stale").exists()
    mask.write_bytes(b"corrected by hand")
    assert run(*argv) == 0
    assert mask.read_bytes() == first
    kept = tmp_path / "out" / "stale" / "case" / "1" / mask.name
    assert kept.read_bytes() == b"corrected by hand"


#: Each costs half a second or more to load, and none is needed to predict.
HEAVY = ("monai", "matplotlib", "nilearn", "sklearn", "pandas", "SimpleITK", "lightning")
HEAVY += ("lightning_fabric", "openvino", "onnxruntime", "nncf", "torchvision", "pytest")
SCRIPT = """
import json, sys
from medseg.cli.main import main
code = main(json.loads(sys.argv[1]))
heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
heavy += [name for name in ("scipy.stats", "scipy.optimize", "scipy.signal") if name in sys.modules]
sys.stderr.write("\\n" + json.dumps([code, heavy]))
"""


def test_predicting_a_small_scan_loads_nothing_heavy(
    scan: Path, model: Path, tmp_path: Path
) -> None:
    argv = ["predict", str(model), str(scan), str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(argv), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_predict_runs_on_a_gpu(scan: Path, model: Path, tmp_path: Path) -> None:
    assert run("predict", model, scan, tmp_path / "out", "--device", "cuda") == 0
