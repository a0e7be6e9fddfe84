"""The promises of CaseSource, checked on every implementation."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.config.learned import LearnedSettings, make_learned
from medseg.config.load import validate
from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.data.source import CaseSource, JoinedSource, SubsetSource
from medseg.data.sources.brats import BratsSettings, BratsSource
from medseg.data.sources.folder import FolderSettings, FolderSource
from medseg.data.sources.ms import MsSettings, MsSource
from medseg.data.splits import split_by_subject


def _write(path: Path, *, labels: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(len(str(path))).normal(size=(6, 5, 4)).astype(np.float32)
    if labels:
        data[:] = 0
        data.reshape(-1)[:labels] = range(1, labels + 1)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0])), path)


def _ms(root: Path) -> CaseSource:
    for patient, visit in product(("P1", "P2", "P3"), ("T1", "T2")):
        _write(root / f"{patient}_{visit}" / "flair.nii.gz")
        _write(root / f"{patient}_{visit}" / "mask.nii.gz", labels=1)
    return MsSource(MsSettings(root=root))


def _brats(root: Path) -> CaseSource:
    for subject, visit in product(("00001", "00002", "00003"), ("000", "001")):
        name = f"BraTS-GLI-{subject}-{visit}"
        for ending in ("t2f", "t1c", "t1n", "t2w"):
            _write(root / name / f"{name}-{ending}.nii.gz")
        _write(root / name / f"{name}-seg.nii.gz", labels=3)
    return BratsSource(BratsSettings(root=root))


def _folder(root: Path) -> CaseSource:
    for subject in ("a", "b", "c"):
        _write(root / "images" / f"{subject}.nii.gz")
        _write(root / "labels" / f"{subject}.nii.gz", labels=2)
    return FolderSource(
        FolderSettings(
            root=root, images={"flair": "images/{case}.nii.gz"}, label="labels/{case}.nii.gz"
        )
    )


def _phantom(_: Path) -> CaseSource:
    return PhantomSource(PhantomSettings(n_subjects=3, spacing_mm=8.0))


def _learned(_: Path) -> CaseSource:
    fit = {"latent": 2, "channels": [4], "fit": {"max_steps": 3}}
    settings = {
        "learn_from": [
            {"kind": "phantom", "settings": {"disease": "tumour", "spacing_mm": 8, "n_subjects": 2}}
        ],
        "hosts": {"kind": "phantom", "settings": {"disease": "healthy", "spacing_mm": 8.0}},
        "spacing_mm": [8.0, 8.0, 8.0],
        "learning": {"side": 8, "shape": fit, "looks": fit, "least_voxels": 2},
        "n_subjects": 3,
    }
    return make_learned(validate(LearnedSettings, settings, where="learned"))


def _subset(root: Path) -> CaseSource:
    source = _ms(root)
    return SubsetSource(source, source.identifiers[:4])


def _joined(root: Path) -> CaseSource:
    return JoinedSource("both", [_ms(root / "ms"), _brats(root / "brats")])


MAKERS: dict[str, Callable[[Path], CaseSource]] = {
    "ms": _ms,
    "brats": _brats,
    "folder": _folder,
    "phantom": _phantom,
    "learned": _learned,
    "subset": _subset,
    "joined": _joined,
}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CaseSource:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def test_says_what_it_is(source: CaseSource) -> None:
    assert source.name
    assert source.licence
    assert source.citation


def test_lists_unique_cases_with_a_subject_each(source: CaseSource) -> None:
    assert len(source) >= 3
    assert len(source.identifiers) == len(source.subjects) == len(source)
    assert len(set(source.identifiers)) == len(source)
    assert all(source.subjects)


def test_items_are_what_the_list_says(source: CaseSource) -> None:
    for index, (identifier, subject) in enumerate(
        zip(source.identifiers, source.subjects, strict=True)
    ):
        if index not in {0, len(source) - 1}:
            continue
        case = source[index]
        assert (case.identifier, case.subject) == (identifier, subject)
        assert case.label is not None
        assert case.label.data.any()
        assert all(scan.data.dtype == torch.float32 for scan in case.scans.values())
        assert all(torch.isfinite(scan.data).all() for scan in case.scans.values())


def test_same_index_same_voxels(source: CaseSource) -> None:
    first, again = source[1], source[1]
    assert first.scans.keys() == again.scans.keys()
    for name in first.scans:
        assert torch.equal(first.scans[name].data, again.scans[name].data)
    assert first.label is not None
    assert again.label is not None
    assert torch.equal(first.label.data, again.label.data)


def test_negative_index_counts_from_the_end(source: CaseSource) -> None:
    assert source[-1].identifier == source.identifiers[-1]


@pytest.mark.parametrize("index", [-10_000, 10_000])
def test_wrong_index_is_refused(source: CaseSource, index: int) -> None:
    with pytest.raises(IndexError):
        source[index]


def test_no_subject_in_two_splits(source: CaseSource) -> None:
    for seed in range(5):
        split = split_by_subject(source, seed=seed, sizes={"train": 1}, rest="test")
        assert not set(split.subjects_of("train")) & set(split.subjects_of("test"))
        assert len(split.parts["train"]) + len(split.parts["test"]) == len(source)


@pytest.mark.parametrize("name", ["ms", "brats", "folder"])
def test_listing_reads_no_voxel(name: str, tmp_path: Path) -> None:
    known = MAKERS[name](tmp_path).identifiers
    for path in tmp_path.rglob("*.nii.gz"):
        path.write_bytes(b"damaged")
    settings = {
        "ms": lambda: MsSource(MsSettings(root=tmp_path)),
        "brats": lambda: BratsSource(BratsSettings(root=tmp_path)),
        "folder": lambda: FolderSource(
            FolderSettings(root=tmp_path, images={"flair": "images/{case}.nii.gz"})
        ),
    }
    assert settings[name]().identifiers == known
