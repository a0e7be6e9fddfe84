from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medseg.data.phantom.cohort import PhantomSettings, PhantomSource
from medseg.errors import ConfigError, DataError
from medseg.scan import Case

SPACING_MM = 6.0


def source(**changes: object) -> PhantomSource:
    chosen = {"spacing_mm": SPACING_MM, "n_subjects": 3} | changes
    return PhantomSource(PhantomSettings(**chosen))  # type: ignore[arg-type]


def same(first: Case, second: Case) -> bool:
    assert first.label is not None
    assert second.label is not None
    if first.grid.shape != second.grid.shape:
        return False
    pairs = [(first.label.data, second.label.data)]
    pairs += [(first.scans[name].data, second.scans[name].data) for name in first.scans]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("disease", ["ms", "tumour"])
@pytest.mark.parametrize("preset", ["source", "target"])
def test_a_case_depends_on_seed_and_index_alone(disease: str, preset: str) -> None:
    short = source(disease=disease, preset=preset, n_subjects=2)
    long = source(disease=disease, preset=preset, n_subjects=50)
    # Reading another case first must not matter.
    _ = long[0]
    assert same(short[1], long[1])
    assert not same(short[0], short[1])
    assert not same(short[1], source(disease=disease, preset=preset, seed=1)[1])
    assert short.identifiers == long.identifiers[:2]


def test_a_modality_looks_the_same_whatever_else_is_asked_for() -> None:
    alone = source(modalities=("flair",))[0]
    among = source(modalities=("t2", "flair", "t1"))[0]
    assert set(among.scans) == {"t2", "flair", "t1"}
    assert torch.equal(alone.scans["flair"].data, among.scans["flair"].data)


@pytest.mark.parametrize(("disease", "allowed"), [("ms", {0, 1}), ("tumour", {0, 1, 2, 3, 4})])
@pytest.mark.parametrize("preset", ["source", "target"])
def test_cases_are_complete(disease: str, allowed: set[int], preset: str) -> None:
    cohort = source(disease=disease, preset=preset, modalities=("flair", "t1", "t1c", "t2"))
    assert len(list(cohort)) == len(cohort) == len(set(cohort.subjects)) == 3
    for identifier, case in zip(cohort.identifiers, cohort, strict=True):
        assert case.identifier == identifier
        assert case.synthetic
        assert case.label is not None
        assert case.brain is not None
        labels = set(case.label.data.unique().tolist())
        assert labels <= allowed
        assert len(labels) > 1
        outside = case.brain.data == 0
        for scan in case.scans.values():
            assert bool(torch.isfinite(scan.data).all())
            assert scan.data.dtype == torch.float32
            assert float(scan.data[outside].abs().max()) == 0.0
        assert not bool((case.label.data[outside] > 0).any())


@pytest.mark.parametrize("spacing_mm", [5.0, (4.0, 5.0, 8.0)])
def test_the_spacing_is_the_one_asked_for(
    spacing_mm: float | tuple[float, float, float],
) -> None:
    case = source(spacing_mm=spacing_mm)[0]
    wanted = spacing_mm if isinstance(spacing_mm, tuple) else (spacing_mm,) * 3
    assert case.grid.spacing_mm == pytest.approx(wanted)
    assert case.grid.orientation == "RAS"


def test_ms_lesions_are_bright_on_flair() -> None:
    for case in source(n_subjects=4, spacing_mm=4.0):
        assert case.label is not None
        assert case.brain is not None
        flair, inside = case.scans["flair"].data, case.label.data > 0
        healthy = (case.brain.data > 0) & ~inside
        assert float(flair[inside].mean()) > float(flair[healthy].mean())
        assert 0.3 < case.label.volume_ml((1,)) < 120


def statistics(cohort: PhantomSource) -> dict[str, float]:
    """Return the mean ratio of grey to white matter's spread, size and noise of a cohort."""
    widths, spread, rough = [], [], []
    for case in cohort:
        assert case.brain is not None
        brain = case.brain.data > 0
        extent = brain.nonzero().amax(dim=0) - brain.nonzero().amin(dim=0)
        widths.append(float(extent[0]) / float(extent[1]))
        t1c = case.scans["t1c"].data
        spread.append(float(t1c[brain].std() / t1c[brain].mean()))
        both = brain[1:] & brain[:-1]
        rough.append(float(t1c.diff(dim=0)[both].abs().median() / t1c[brain].std()))
    return {
        "width": float(np.mean(widths)),
        "spread": float(np.mean(spread)),
        "rough": float(np.mean(rough)),
    }


def test_the_presets_are_two_populations() -> None:
    first = statistics(source(n_subjects=8, spacing_mm=5.0))
    second = statistics(source(n_subjects=8, spacing_mm=5.0, preset="target"))
    # The target's heads are broader and its contrast between tissues is flatter.
    assert second["width"] > first["width"] + 0.03
    assert second["spread"] < first["spread"] - 0.03
    assert not same(source()[0], source(preset="target")[0])


@pytest.mark.parametrize("index", [-4, 3, 100])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=str(index)):
        _ = source()[index]


@pytest.mark.parametrize(
    ("disease", "key"),
    [("tumour", "lesion_masks"), ("ms", "tumour_masks"), ("healthy", "tumour_masks")],
)
def test_masks_of_another_disease_are_refused(tmp_path: Path, disease: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*'{disease}'"):
        source(disease=disease, **{key: tmp_path})


@pytest.mark.parametrize("key", ["label_maps", "lesion_masks"])
def test_an_empty_folder_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=key):
        source(**{key: tmp_path})


@pytest.mark.parametrize(
    "changes",
    [{"modalities": ()}, {"modalities": ("pd",)}, {"spacing_mm": 0.0}, {"n_subjects": 0}],
)
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        source(**changes)


def test_semi_real_ms_cohorts_use_real_heads_and_masks(shared_data: Path) -> None:
    chosen = {
        "label_maps": shared_data / "label_maps",
        "lesion_masks": shared_data / "ms_lesion_masks",
        "spacing_mm": 4.0,
    }
    cohort = source(**chosen)
    assert cohort.name == "semireal-ms-source"
    assert "Billot" in cohort.citation
    case = cohort[0]
    assert case.label is not None
    assert set(case.label.data.unique().tolist()) == {0, 1}
    assert case.label.volume_ml((1,)) < 100
    assert same(case, source(**chosen, n_subjects=1)[0])


def test_semi_real_tumours_of_the_two_presets_share_no_head(shared_data: Path) -> None:
    folder = shared_data / "label_maps"
    heads = [
        set(source(disease="tumour", preset=preset, label_maps=folder).heads)
        for preset in ("source", "target")
    ]
    assert all(heads)
    assert not heads[0] & heads[1]
    case = source(disease="tumour", label_maps=folder)[0]
    assert case.label is not None
    assert len(set(case.label.data.unique().tolist())) > 2


def test_a_negative_index_counts_from_the_end() -> None:
    assert same(source()[-1], source()[2])
