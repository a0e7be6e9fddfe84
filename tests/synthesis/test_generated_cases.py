import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medseg.cli.main import main
from medseg.config.build import build_cohort
from medseg.config.load import validate
from medseg.config.schema import DataConfig
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.errors import ScanError
from medseg.io.nifti import read_scan
from medseg.synthesis.cohort import LearnedSource
from medseg.synthesis.lesion_model import LesionModel

HOSTS = PhantomSource(PhantomSettings(disease="healthy", spacing_mm=8.0, n_subjects=2))


@pytest.fixture(scope="module")
def source(model: LesionModel) -> LearnedSource:
    return LearnedSource("drawn", HOSTS, lambda: model, n_subjects=3, seed=0)


def test_lesions_lie_inside_the_brain_of_the_host(source: LearnedSource) -> None:
    case, host = source[0], HOSTS[0]
    assert case.synthetic
    assert case.label is not None
    assert case.brain is not None
    lesion = case.label.data > 0
    assert bool(lesion.any())
    assert not bool((lesion & (case.brain.data == 0)).any())
    assert set(case.label.data.unique().tolist()) <= {0, 2, 4}
    far = torch.nn.functional.max_pool3d(lesion[None, None].float(), 7, 1, 3)[0, 0] == 0
    for name, scan in case.scans.items():
        assert torch.equal(scan.data[far], host.scans[name].data[far])
    assert float((case.scans["flair"].data - host.scans["flair"].data)[lesion].median()) > 0


def test_cases_of_one_head_stay_together(source: LearnedSource) -> None:
    assert source.subjects[0] == source.subjects[2] != source.subjects[1]
    assert source.provenance(2)["parents"] == [HOSTS.identifiers[0]]
    first, third = source[0].label, source[2].label
    assert first is not None
    assert third is not None
    assert not torch.equal(first.data, third.data)


def test_a_host_without_the_modality_is_refused(model: LesionModel) -> None:
    other = replace(model, channels=("t2", "t1c"))
    with pytest.raises(ScanError, match="t2"):
        LearnedSource("x", HOSTS, lambda: other, n_subjects=1, seed=0)[0]


def test_generate_writes_what_a_folder_source_reads(
    model: LesionModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "model")
    out = tmp_path / "out"
    hosts = "hosts={kind: phantom, settings: {disease: healthy, spacing_mm: 8.0, n_subjects: 2}}"
    command = ["generate", "--source", "learned", "--out", str(out), "--seed", "3"]
    settings = [f"lesions={tmp_path / 'model'}", hosts]
    assert main([*command, "--count", "1", *settings]) == 0
    folder = Path(capsys.readouterr().out.strip())
    text = json.loads((folder / f"{folder.name}.json").read_text(encoding="utf-8"))
    assert text["synthetic"] is True
    assert text["seed"] == 3
    assert text["model"]["shape"] == "cube_vae"
    assert text["parents"] == [HOSTS.identifiers[0]]
    before = (folder / "flair.nii.gz").stat().st_mtime_ns
    assert main([*command, "--count", "2", *settings]) == 0
    assert (folder / "flair.nii.gz").stat().st_mtime_ns == before
    record = json.loads((out / "generated.json").read_text(encoding="utf-8"))
    cohort = build_cohort(validate(DataConfig, record["read_as"], where="read_as"), where="t")
    assert len(cohort.source) == 2
    read = cohort.source[0]
    assert read.label is not None
    assert read.grid.matches(read_scan(folder / "flair.nii.gz").grid, tolerance_mm=1e-4)
    assert LesionModel.load(out / "lesions").describe() == model.describe()
    assert main([*command[:-1], "4", "--count", "2", *settings]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither"),
        (["generate/tumours", "--source", "phantom"], "key=value"),
        (["--source", "ms"], "phantom"),
        (["--source", "phantom", "diseas=ms"], "disease"),
        (["--source", "phantom", "--count", "0"], "1.."),
        (["--source", "phantom", "modalities=[pet]"], "random"),
        (["--source", "learned", "hosts={kind: phantom}"], "neither"),
        (["--source", "learned", "lesions=nowhere", "hosts={kind: phantom}"], "lesions.json"),
        (["nowhere.yaml"], "nowhere"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_random_contrasts_show_every_lesion_under_any_name() -> None:
    settings = PhantomSettings(
        disease="tumour", contrast="random", modalities=("pet", "flair"), spacing_mm=8.0
    )
    first, again = PhantomSource(settings)[0], PhantomSource(settings)[0]
    assert set(first.scans) == {"pet", "flair"}
    assert torch.equal(first.scans["pet"].data, again.scans["pet"].data)
    other = PhantomSource(replace(settings, modalities=("flair",)))[0]
    assert torch.equal(first.scans["flair"].data, other.scans["flair"].data)
    preset = PhantomSource(replace(settings, contrast="preset", modalities=("flair",)))[0]
    assert preset.label is not None
    assert first.label is not None
    # The same head and tumour, in other grey values.
    assert torch.equal(preset.label.data, first.label.data)
    assert not torch.equal(preset.scans["flair"].data, first.scans["flair"].data)
