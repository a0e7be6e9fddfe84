"""``medseg finetune FOLDER``: a bare folder of scans with masks instead of a configuration."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.cli.main import main
from medseg.data.regions import RegionSettings
from medseg.data.sources.brats import BratsSettings, BratsSource
from medseg.errors import ConfigError
from medseg.experiment import crossfit, single
from medseg.experiment.single import fingerprint, load_source_model, source_from
from medseg.inference.model import Model, ModelSpec, load_model
from medseg.inference.people import seen_among
from medseg.inference.predict import predict_case
from medseg.inference.settings import PredictSettings
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.harvest import harvest
from medseg.training.checkpoint import Checkpoints
from medseg.training.method import MethodSettings
from medseg.training.rehearsal import RehearsalSettings
from medseg.training.transfer import new_network

WIDER = UNetSettings(in_channels=2, out_channels=2, widths=(4, 8))
SHAPE = (16, 18, 14)
FAST = (
    "protocol.target_training.steps=2",
    "protocol.target_training.device=cpu",
    "protocol.patch.size=[8,8,8]",
    "protocol.patch.batch_size=1",
)


def run(*argv: object) -> int:
    return main([str(part) for part in argv])


def save_source(
    folder: Path, *, channels: tuple[str, ...] = ("flair", "t1c"), spacing_mm: float | None = None
) -> Path:
    architecture = UNetSettings(in_channels=len(channels), out_channels=2, widths=(4, 4))
    spacing = None if spacing_mm is None else (spacing_mm, spacing_mm, spacing_mm)
    source = ModelSpec(
        architecture=architecture,
        channels=channels,
        regions=RegionSettings(names=("lesion", "whole")),
        region_definition={"lesion": (1,), "whole": (1, 2, 3, 4)},
        preprocess=PreprocessSettings(spacing_mm=spacing),
        allow_missing=True,
        method="source",
    )
    Model(new_network(architecture, seed=0), source).save(folder)
    return folder


def write_case(folder: Path, *, mask: str = "seg", labels: int = 4, t1c: bool = True) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(labels)
    head = np.zeros(SHAPE, dtype=np.float32)
    head[2:-2, 2:-2, 2:-2] = 100 + 10 * rng.standard_normal((12, 14, 10))
    lesion = np.zeros(SHAPE, dtype=np.uint8)
    for value in range(1, labels + 1):
        lesion[5 + value, 6:10, 6:10] = value
    volumes = {"flair": head, mask: lesion} | ({"t1c": head * 0.5} if t1c else {})
    for name, data in volumes.items():
        nib.save(nib.Nifti1Image(data, np.diag([6.0, 6.0, 6.0, 1.0])), folder / f"{name}.nii.gz")


@pytest.fixture
def tumours(tmp_path: Path) -> Path:
    for name in ("pat1", "pat2"):
        write_case(tmp_path / "tumours" / name)
    return tmp_path / "tumours"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_source(tmp_path_factory.mktemp("models") / "source")


def test_a_folder_is_trained_on_like_the_source(
    tmp_path: Path, tumours: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = harvest([load_model(source).network])
    fit_priors(kernels, FitPriorSettings(kind="gaussian", grouping="group"), seed=0).save(
        tmp_path / "prior"
    )
    out = tmp_path / "dwp"
    argv = ("finetune", tumours, "--source", source, "--prior", tmp_path / "prior", "--out", out)
    assert run(*argv, *FAST) == 2, "auto has no use for a filter prior"
    argv = (*argv, "--method", "dwp")
    assert run(*argv, *FAST) == 0
    assert capsys.readouterr().out == f"{out}\n"
    made, given = load_model(out).spec, load_model(source).spec
    assert made.method == "dwp"
    assert made.variational is not None
    assert made.regions.names == ("whole",)
    assert made.region_definition == {"whole": (1, 2, 3, 4)}
    assert (made.channels, made.preprocess) == (given.channels, given.preprocess)
    assert made.architecture.widths == given.architecture.widths
    assert len(made.training["subjects"]) == 2
    assert seen_among(made.training["subjects"], ["pat1", "pat2", "pat3"]) == ["pat1", "pat2"]
    settings = MethodSettings(**made.training["method"])
    assert settings == MethodSettings(method="dwp")
    assert (made.training["objective"], made.training["scans"]) == (None, "")
    prior = tmp_path / "prior"
    assert made.training["source"] == fingerprint(load_source_model(source, prior=prior))
    assert made.training["source"] != fingerprint(load_source_model(source))
    assert "2 cases of 2 people (brats)" in (out / "medseg.log").read_text()


def test_numbers_that_may_be_visits_are_told(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("P14_1", "P14_2", "P15_1"):
        write_case(tmp_path / "in" / name)
    argv = ("finetune", tmp_path / "in", "--source", source, "--method", "pr", *FAST)
    assert run(*argv, "--out", tmp_path / "a") == 0
    said = "3 cases of 3 people; if P14_1 and P14_2 are visits of one person"
    assert capsys.readouterr().err.count(said) == 1
    # What is advised there ends it.
    advice = (tmp_path / "a" / "medseg.log").read_text().split("for example ")[1].splitlines()[0]
    assert run(*argv, advice.replace("'", ""), "--out", tmp_path / "b") == 0
    assert "visits of one person" not in capsys.readouterr().err
    subjects = load_model(tmp_path / "b").spec.training["subjects"]
    assert len(subjects) == 2
    assert seen_among(subjects, ("P14", "P15", "P14_1")) == ["P14", "P15"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (("resampled",), "--kernels is not given"),
        (("dwp", "--set", "init=resampled", "--prior", "somewhere"), "--kernels is not given"),
        (("anchored",), "--prior is not given"),
    ],
)
def test_what_a_method_needs_is_named(
    tmp_path: Path,
    tumours: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    method: tuple[str, ...],
    words: str,
) -> None:
    argv = ("finetune", tumours, "--source", source, "--out", tmp_path / "x", "--method", *method)
    assert run(*argv) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": ("t1c", "flair")}, r"channels \['flair', 't1c'\] and \['t1c', 'flair'\]"),
        ({"preprocess": PreprocessSettings(normalise="minmax")}, "preprocess.normalise zscore and"),
        ({"regions": RegionSettings(names=("whole", "lesion"))}, r"regions.names .*'lesion'\]"),
        ({"architecture": WIDER}, r"architecture.widths \[4, 4\] and \[4, 8\]"),
    ],
)
def test_members_of_a_source_agree(source: Path, change: dict, words: str) -> None:
    given = load_model(source)
    source_from(given, given)
    spec = replace(given.spec, **change)
    with pytest.raises(ConfigError, match=words):
        source_from(given, Model(new_network(spec.architecture, seed=0), spec))


def test_a_source_of_other_channels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = save_source(tmp_path / "source", channels=("t1c", "flair"))
    argv = ("finetune", "experiment/demo", "--method", "pr", "--source", swapped)
    assert run(*argv, "--out", tmp_path / "out") == 2
    assert "t1c, flair and protocol.channels is flair, t1c" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_lesions_keeps_the_head_of_its_region(tmp_path: Path, source: Path) -> None:
    write_case(tmp_path / "ms" / "p1", mask="lesion", labels=1)
    argv = ("finetune", tmp_path / "ms", "--source", source, "--method", "pr")
    still = ("protocol.target_training.learning_rate=1e-12",)
    assert run(*argv, "--out", tmp_path / "pr", *FAST, *still) == 0
    made, given = load_model(tmp_path / "pr"), load_model(source)
    assert made.spec.regions.names == ("lesion",)
    ours, theirs = made.network.state_dict(), given.network.state_dict()
    torch.testing.assert_close(ours["head.weight"], theirs["head.weight"][:1])


def test_without_a_source_there_are_the_usual_settings(tmp_path: Path, tumours: Path) -> None:
    argv = ("finetune", tumours, "--method", "ri", "--out", tmp_path / "ri")
    assert run(*argv, *FAST, "protocol.preprocess.spacing_mm=[8,8,8]") == 0
    made = load_model(tmp_path / "ri").spec
    assert made.regions.names == ("core", "whole")
    assert made.channels == ("flair", "t1c")
    assert made.architecture.widths == (16, 32, 32, 64)


def test_an_interrupted_training_goes_on(
    tmp_path: Path, tumours: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("finetune", tumours, "--source", source, "--method", "pr", *FAST, "--out")
    assert run(*argv, tmp_path / "whole") == 0
    save = Model.save

    def interrupt(self: Model, folder: Path) -> None:
        monkeypatch.setattr(Model, "save", save)
        raise KeyboardInterrupt

    monkeypatch.setattr(single, "Checkpoints", partial(Checkpoints, every_steps=1))
    monkeypatch.setattr(Model, "save", interrupt)
    out = tmp_path / "parts"
    assert run(*argv, out) == 130
    assert not (out / "model.json").exists()
    assert run(*argv, out, "protocol.seed=1") == 1, "another training may not go on from it"
    assert run(*argv, out) == 0
    assert "resumed at step 2" in (out / "medseg.log").read_text()
    whole, parts = (load_model(tmp_path / n).network.state_dict() for n in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def change_a_mask(case: Path) -> None:
    image = nib.load(case / "seg.nii.gz")
    data = np.array(image.dataobj, dtype=np.uint8)
    data[6, 6:10, 10] = 1
    nib.save(nib.Nifti1Image(data, image.affine), case / "seg.nii.gz")


def test_a_training_begins_anew_where_a_mask_changed(
    tmp_path: Path,
    tumours: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ("finetune", tumours, "--source", source, "--method", "pr", *FAST, "--out")
    save, out = Model.save, tmp_path / "parts"

    def interrupt(self: Model, folder: Path) -> None:
        monkeypatch.setattr(Model, "save", save)
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "save", interrupt)
    monkeypatch.setattr(single, "Checkpoints", partial(Checkpoints, every_steps=1))
    assert run(*argv, out) == 130
    change_a_mask(tumours / "pat1")
    assert run(*argv, out) == 0
    assert "training starts anew" in (out / "medseg.log").read_text()
    assert run(*argv, tmp_path / "whole") == 0
    whole, parts = (load_model(tmp_path / n).network.state_dict() for n in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    change_a_mask(tumours / "pat2")
    capsys.readouterr()
    assert run(*argv, out) == 2, "a finished one stays"
    assert "trained on other scans or masks" in " ".join(capsys.readouterr().err.split())


def test_an_unfinished_calibration_begins_anew_where_a_mask_changed(
    tmp_path: Path, tumours: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("finetune", tumours, "--source", source, "--method", "pr", *FAST, "--calibrate", 2)
    out, real = tmp_path / "parts", crossfit.held_out_cases

    def interrupt(*_: object, **__: object) -> None:
        monkeypatch.setattr(crossfit, "held_out_cases", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(crossfit, "held_out_cases", interrupt)
    assert run(*argv, "--out", out) == 130
    first = load_model(out).fingerprint()
    change_a_mask(tumours / "pat1")
    assert run(*argv, "protocol.seed=1", "--out", out) == 2, "other settings are another model"
    assert load_model(out).fingerprint() == first
    assert run(*argv, "--out", out) == 0
    assert run(*argv, "--out", tmp_path / "whole") == 0
    names = ("model.safetensors", "calibration.json")
    assert [(out / n).read_bytes() for n in names] == [
        (tmp_path / "whole" / n).read_bytes() for n in names
    ]


@pytest.mark.parametrize("way", ["itself", "link", "a member"])
def test_a_source_is_never_written_over(
    tmp_path: Path, tumours: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = save_source(tmp_path / "mine"), save_source(tmp_path / "other")
    (tmp_path / "link").symlink_to(mine)
    out = {"itself": tmp_path / "other" / ".." / "mine", "link": tmp_path / "link"}.get(way, other)
    before = {path: path.read_bytes() for path in mine.iterdir()}
    argv = ("finetune", tumours, "--source", mine, "--source", other, "--method", "pr", *FAST)
    assert run(*argv, "--out", out) == 2
    assert "A source is never written over" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in mine.iterdir()} == before


def test_a_finished_model_is_neither_trained_again_nor_written_over(
    tmp_path: Path, tumours: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ("finetune", tumours, "--source", source, "--method", "pr", *FAST, "--out", out)
    assert run(*argv) == 0
    kept = ("model.json", "model.safetensors", "history.tsv")
    before = [(out / name).stat().st_mtime_ns for name in kept]
    capsys.readouterr()
    assert run(*argv) == 0
    shown = capsys.readouterr()
    assert "done already" in shown.err
    assert shown.out == f"{out}\n"
    for other in (("protocol.seed=1",), ("--set", "dropout=0.1"), ("--refine",)):
        assert run(*argv, *other) == 2
        assert "Give another folder" in " ".join(capsys.readouterr().err.split())
    assert [(out / name).stat().st_mtime_ns for name in kept] == before


def test_what_cannot_be_used_makes_no_folder(
    tmp_path: Path, tumours: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_case(tmp_path / "alike" / "p1", labels=1)
    write_case(tmp_path / "few" / "p1", mask="lesion", labels=1, t1c=False)
    (tmp_path / "mine.yaml").write_text("title: x")
    for argv, code, words in (
        ((tmp_path / "empty",), 4, "fits none"),
        ((tmp_path / "absent",), 2, "A configuration is a file"),
        ((tmp_path / "alike",), 2, "--kind ms or --kind brats"),
        ((tumours, "--kind", "folder"), 2, "must be one of ['ms', 'brats']"),
        ((tmp_path / "mine.yaml", "--kind", "ms"), 2, "is no folder"),
        ((tmp_path / "few",), 4, "channels of the source model"),
        ((tumours, "protocol.sed=1"), 2, "did you mean 'seed'"),
    ):
        command = ("finetune", *argv, "--source", source, "--method", "pr")
        assert run(*command, "--out", tmp_path / "out") == code
        assert words in capsys.readouterr().err
    assert run("finetune", tumours, "--method", "pr", "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_the_kind_can_be_given(tmp_path: Path, source: Path) -> None:
    write_case(tmp_path / "alike" / "p1", labels=1)
    argv = ("finetune", tmp_path / "alike", "--source", source, "--method", "pr", *FAST)
    assert run(*argv, "--kind", "brats", "--out", tmp_path / "out") == 0
    assert load_model(tmp_path / "out").spec.regions.names == ("whole",)


def test_a_source_of_other_regions_is_asked_how_far_to_go_back(
    tmp_path: Path, source: Path
) -> None:
    write_case(tmp_path / "alike" / "p1", labels=1)
    argv = ("finetune", tmp_path / "alike", "--source", source, "--kind", "brats", *FAST)
    regions = ("--set", "members=1", "protocol.regions.names=[core]")
    back = ("--set", "members=1", "--set", "wise_share=0.25")
    assert run(*argv, *back, "--out", tmp_path / "same") == 0, "a setting of what is chosen"
    assert load_model(tmp_path / "same").spec.method == "wise_back0.25"
    assert run(*argv, *regions, "--out", tmp_path / "other") == 0
    assert load_model(tmp_path / "other").spec.method == "auto"


def test_a_refined_model_knows_how_its_scans_look(
    tmp_path: Path, tumours: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("finetune", tumours, "--source", source, "--method", "wise", *FAST)
    both = ("protocol.regions.names=[core,whole]", "--set", "refine.components=1")
    assert run(*argv, *both, "--refine", "--out", tmp_path / "out") == 0
    refined = load_model(tmp_path / "out")
    looks = refined.spec.intensities
    assert looks is not None
    assert looks.regions == ("whole", "core")
    assert set(looks.tissues) == {0, 1, 2}
    assert "Refined:" in (tmp_path / "out" / "card.md").read_text()
    case = BratsSource(BratsSettings(root=tumours))[0]
    plain = replace(refined, spec=replace(refined.spec, intensities=None))
    found, other = (predict_case(model, case).probability.values for model in (refined, plain))
    assert not torch.equal(found, other)
    without = PredictSettings(refine=False)
    assert torch.equal(predict_case(refined, case, settings=without).probability.values, other)
    disjoint = "protocol.regions.names=[core,oedema]"
    assert run(*argv, disjoint, "--refine", "--out", tmp_path / "no") == 2
    assert "'core'" in capsys.readouterr().err


CONFIG = """
title: generated
sources: {more: [{kind: phantom, settings: {disease: tumour, n_subjects: 2, spacing_mm: 8.0}}]}
target: {kind: phantom, settings: {disease: tumour, preset: target, n_subjects: 2, spacing_mm: 8.0}}
arms: [{method: {method: ri}}]
"""


def test_more_scans_are_rehearsed_in_the_looks_of_the_few(
    tmp_path: Path, tumours: Path, source: Path
) -> None:
    write_case(tmp_path / "more" / "other1")
    (tmp_path / "generated.yaml").write_text(CONFIG)
    argv = ("finetune", tumours, "--source", source, "--set", "members=1", *FAST)
    for number, scans in enumerate((tmp_path / "more", f"{tmp_path}/generated.yaml:more")):
        out = tmp_path / f"out{number}"
        assert run(*argv, "--scans", scans, "--out", out) == 0
        made = load_model(out).spec
        assert made.method == "wise_rehearsal_looks"
        objective = RehearsalSettings(**made.training["objective"])
        assert objective == RehearsalSettings(share=0.75, looks="target")
        assert made.training["scans"] == str(scans)
        seen = made.training["seen_subjects"]
        assert seen_among(seen, ["pat1", "pat2"]) == ["pat1", "pat2"]
        assert len(seen) > 2
    own = ("--objective", "rehearsal", "--method", "pr", "--scans", tmp_path / "more")
    assert run(*argv, *own, "--out", tmp_path / "own") == 0
    objective = load_model(tmp_path / "own").spec.training["objective"]
    assert RehearsalSettings(**objective) == RehearsalSettings(), "what is named is as it was"


@pytest.mark.parametrize(
    ("given", "steps"), [((), 900), (("protocol.target_training.steps=7",), 7)]
)
def test_a_folder_is_trained_on_for_as_long_as_was_compared(
    tmp_path: Path,
    tumours: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    steps: int,
) -> None:
    planned = []
    monkeypatch.setattr(single, "finetune_target", lambda plan, *_, **__: planned.append(plan))
    argv = ("finetune", tumours, "--source", source, "--out", tmp_path / "out", *given)
    assert run(*argv) == 0
    assert planned[0].protocol.target_training.steps == steps


def test_what_cannot_be_rehearsed_is_refused(
    tmp_path: Path, tumours: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "more" / "other1")
    write_case(tmp_path / "few" / "other1", t1c=False)
    write_case(tmp_path / "alike" / "other1", labels=1)
    for scans, more, words in (
        (tumours, (), "lie in one another"),
        (tumours / "pat1", (), "lie in one another"),
        (tmp_path / "few", (), "t1c"),
        (tmp_path / "alike", (), "--scans FILE.yaml:NAME"),
        (tmp_path / "more", ("--method", "swag"), "all methods but swag"),
        (tmp_path / "more", ("--objective", "distillation"), "objective is distillation"),
    ):
        argv = ("finetune", tumours, "--source", source, *more, "--scans", scans)
        assert run(*argv, "--out", tmp_path / "x") in (2, 4)
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()
    argv = ("finetune", tumours, "--source", source, "--kind", "brats", *FAST)
    alike = ("--scans", tmp_path / "alike", "--set", "members=1", "--out", tmp_path / "y")
    assert run(*argv, *alike) == 0, "a kind that is given is that of both"


@pytest.mark.parametrize(
    ("scans", "words"),
    [
        ("nothing", "a folder of cases with masks, or CONFIG:NAME"),
        ("experiment/demo:nothing", "sources ['both'] of demo.yaml, but 'nothing' means 0"),
        ("nowhere:both", "A configuration is a file"),
    ],
)
def test_scans_that_are_not_there_are_named(
    tmp_path: Path,
    tumours: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    scans: str,
    words: str,
) -> None:
    argv = ("finetune", tumours, "--source", source, "--scans", scans, "--out", tmp_path / "x")
    assert run(*argv) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_real_tumour_is_trained_on(tmp_path: Path, shared_data: Path) -> None:
    source = save_source(tmp_path / "source", spacing_mm=8.0)
    folder, out = shared_data / "tumour_brats2013" / "pat0001", tmp_path / "out"
    regions = "protocol.regions.names=[core,whole]"
    argv = ("finetune", folder, "--source", source, "--method", "pr", "--out", out)
    assert run(*argv, *FAST, regions) == 0
    made = load_model(out).spec
    assert made.regions.names == ("core", "whole")
    assert seen_among(made.training["subjects"], ["pat0001"]) == ["pat0001"]
