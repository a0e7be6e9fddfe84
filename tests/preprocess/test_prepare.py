"""What a network gets from a case, and what comes back on the case's own grid."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from medseg.errors import ScanError, ShapeError
from medseg.geometry import Grid
from medseg.io.nifti import read_label_map, read_scan
from medseg.preprocess.prepare import PreparedCase, PreprocessSettings, prepare
from medseg.scan import Case, LabelMap, Scan

SHAPE = (30, 34, 26)
NATIVE = PreprocessSettings(spacing_mm=None, margin_mm=4)


def make_case(kind: str = "aligned", *, orientation: str = "LPS", brain: bool = True) -> Case:
    """An ellipsoid brain with a lesion near the left front, off centre on every axis."""
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    if kind != "aligned":
        affine[:3, :3] = Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix() @ affine[:3, :3]
    if kind == "sheared":
        affine[0, 1] += 0.3
    affine[:3, 3] = [-30, -34, -32]
    grid = Grid(SHAPE, affine).reoriented(orientation)
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1)
    places = Grid(SHAPE, affine).to_voxel(grid.to_world(voxels)) - (np.array(SHAPE) - 1) / 2
    inside = np.linalg.norm(places / [11, 13, 9], axis=-1) <= 1
    lesion = np.linalg.norm(places - [-4, 5, 1], axis=-1) <= 3.2
    noise = np.random.default_rng(0).normal(0, 5, grid.shape)
    flair = np.where(inside, 100 + 60 * lesion + noise, 0).astype(np.float32)
    t1 = np.where(inside, 200 - 20 * lesion - noise, 0).astype(np.float32)
    return Case(
        "c1",
        "s1",
        {"flair": Scan(torch.from_numpy(flair), grid), "t1": Scan(torch.from_numpy(t1), grid)},
        label=LabelMap(torch.from_numpy(lesion.astype(np.uint8) * 4), grid),
        brain=LabelMap(torch.from_numpy(inside.astype(np.uint8)), grid) if brain else None,
    )


def _dsc(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@given(
    kind=st.sampled_from(["aligned", "oblique", "sheared"]),
    orientation=st.sampled_from(["RAS", "LPS", "LIA", "SPR"]),
    wanted=st.sampled_from(["RAS", "LPI", "ASR"]),
    crop=st.booleans(),
)
def test_where_voxels_only_move_everything_comes_back_exactly(
    kind, orientation, wanted, crop
) -> None:
    case = make_case(kind, orientation=orientation)
    settings = PreprocessSettings(
        spacing_mm=None, orientation=wanted, crop_to_brain=crop, margin_mm=2, normalise="none"
    )
    prepared = prepare(case, channels=["flair", "t1"], settings=settings)
    assert prepared.grid.orientation == wanted
    assert prepared.source_grid is case.grid
    back = prepared.to_source(prepared.image, mode="linear")
    for channel, name in zip(back, ["flair", "t1"], strict=True):
        assert torch.equal(channel, case.scans[name].data)  # 0 outside the brain in the case too
    assert prepared.label is not None
    assert case.label is not None
    label = prepared.to_source(prepared.label[None], mode="nearest")[0]
    assert torch.equal(label, case.label.data)
    if crop:
        assert prepared.brain.numel() < 0.85 * np.prod(SHAPE)


@hypothesis_settings(max_examples=10)
@given(
    kind=st.sampled_from(["aligned", "oblique", "sheared"]),
    orientation=st.sampled_from(["RAS", "LPS", "LIA"]),
    spacing=st.sampled_from([(1.5, 1.5, 1.5), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0), (2.0, 2.0, 5.0)]),
)
def test_a_perfect_prediction_comes_back_nearly_perfect(kind, orientation, spacing) -> None:
    case = make_case(kind, orientation=orientation)
    prepared = prepare(case, channels=["flair"], settings=PreprocessSettings(spacing_mm=spacing))
    assert prepared.grid.spacing_mm == pytest.approx(spacing)
    assert not prepared.grid.is_sheared
    assert prepared.label is not None
    assert case.label is not None
    probability = torch.stack([(prepared.label == 4).float(), prepared.brain.float()])
    back = prepared.to_source(probability, mode="linear")
    assert back.shape == (2, *case.grid.shape)
    assert back.dtype == torch.float32
    assert float(back.min()) >= 0
    assert float(back.max()) <= 1 + 1e-5
    assert case.brain is not None
    assert _dsc(back[0] > 0.5, case.label.data > 0) > (0.75 if max(spacing) > 2 else 0.85)
    assert _dsc(back[1] > 0.5, case.brain.data > 0) > 0.9


def test_the_image_is_normalised_inside_and_zero_outside() -> None:
    prepared = prepare(make_case(), channels=["t1", "flair"], settings=PreprocessSettings())
    assert prepared.image.dtype == torch.float32
    assert prepared.brain.dtype == torch.bool
    for channel in prepared.image:
        assert float(channel[prepared.brain].mean()) == pytest.approx(0, abs=1e-4)
        assert float(channel[prepared.brain].std()) == pytest.approx(1, abs=1e-2)
        assert not channel[~prepared.brain].any()
    # Channels in the order asked for: the lesion is bright on FLAIR and dark on T1.
    assert prepared.label is not None
    t1, flair = (float(channel[prepared.label > 0].mean()) for channel in prepared.image)
    assert t1 < 0 < flair


def test_the_order_of_a_cases_axes_does_not_change_what_the_network_sees() -> None:
    settings = PreprocessSettings(spacing_mm=(3, 3, 3))
    a, b = (
        prepare(make_case(orientation=o), channels=["flair"], settings=settings)
        for o in ("RAS", "LPS")
    )
    assert a.grid.orientation == b.grid.orientation == "RAS"
    # The grids may start at another face, by less than a voxel; what they hold agrees.
    assert abs(a.brain.sum() - b.brain.sum()) < 0.03 * a.brain.sum()


def test_the_box_holds_the_brain_and_the_margin() -> None:
    case = make_case(orientation="RAS")
    prepared = prepare(case, channels=["flair"], settings=NATIVE)
    assert case.brain is not None
    assert int(prepared.brain.sum()) == int((case.brain.data > 0).sum())
    hits = torch.nonzero(prepared.brain)
    gaps = [
        hits.min(dim=0).values.tolist(),
        (torch.tensor(prepared.grid.shape) - 1 - hits.max(dim=0).values).tolist(),
    ]
    assert gaps == [[2, 2, 2], [2, 2, 2]]  # 4 mm in voxels of 2, 2 and (rounded up) 2.5 mm


def test_without_a_mask_the_brain_is_found() -> None:
    with_mask = prepare(make_case(), channels=["flair"], settings=NATIVE)
    without = prepare(make_case(brain=False), channels=["flair"], settings=NATIVE)
    assert torch.equal(with_mask.brain, without.brain)


@pytest.mark.parametrize("brain", [True, False])
def test_a_scan_that_is_not_asked_for_changes_nothing(brain) -> None:
    case = make_case(brain=brain)
    noise = torch.from_numpy(np.random.default_rng(1).normal(9, 1, case.grid.shape)).float()
    noise[:2] = 0  # fills more than the brain, as an unstripped head does
    noise[:, :, :8] = noise[:, :, -8:] = noise[:, :8] = noise[:, -8:] = noise[-2:] = 0
    head = Scan(noise, case.grid)
    more = Case("c1", "s1", {"t2": head, **case.scans}, label=case.label, brain=case.brain)
    plain, other = (prepare(one, channels=["flair"], settings=NATIVE) for one in (case, more))
    assert torch.equal(plain.image, other.image)
    assert torch.equal(plain.brain, other.brain)
    assert plain.grid.matches(other.grid, tolerance_mm=0)


def test_a_missing_modality_is_refused_by_name_or_left_empty() -> None:
    case = make_case()
    with pytest.raises(ScanError, match=r"'c1'.*\['t1c'\] is missing.*\['flair', 't1'\]"):
        prepare(case, channels=["flair", "t1c"], settings=NATIVE)
    prepared = prepare(case, channels=["flair", "t1c"], settings=NATIVE, allow_missing=True)
    assert prepared.present.tolist() == [True, False]
    assert prepared.image[0].any()
    assert not prepared.image[1].any()
    with pytest.raises(ScanError, match="at least one"):
        prepare(case, channels=["t1c", "t2"], settings=NATIVE, allow_missing=True)


def test_a_scan_that_is_constant_in_the_brain_is_refused_by_name() -> None:
    case = make_case()
    assert case.brain is not None
    flat = Scan(case.brain.data.float() * 7, case.grid)
    with pytest.raises(ScanError, match=r"'c1', 't2'.*7 everywhere"):
        prepare(Case("c1", "s1", {"t2": flat}, brain=case.brain), channels=["t2"], settings=NATIVE)


def test_a_lesion_that_vanishes_is_told(caplog) -> None:
    case = make_case()
    tiny = torch.zeros_like(case.label.data)  # type: ignore[union-attr]
    tiny[15, 17, 13] = 1
    case = Case("c1", "s1", case.scans, label=LabelMap(tiny, case.grid), brain=case.brain)
    prepare(case, channels=["flair"], settings=PreprocessSettings(spacing_mm=(8, 8, 8)))
    assert "'c1': all labels vanish" in caplog.text


def test_volumes_of_another_grid_do_not_come_back() -> None:
    prepared = prepare(make_case(), channels=["flair"], settings=NATIVE)
    with pytest.raises(ShapeError):
        prepared.to_source(torch.zeros(1, 3, 3, 3), mode="linear")


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing_mm": (1, 0, 1)},
        {"spacing_mm": (1, 1)},
        {"orientation": "RAX"},
        {"orientation": "RLS"},
        {"margin_mm": -1},
        {"normalise": "percentile"},
        {"spacing": (1, 1, 1)},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        PreprocessSettings(**wrong)


def _real(shared_data, folder: str, names: dict[str, str], label: str) -> Case:
    scans = {key: read_scan(shared_data / folder / f"{name}.nii.gz") for key, name in names.items()}
    reference = read_label_map(shared_data / folder / f"{label}.nii.gz")
    return Case(folder, folder, scans, label=reference)


def _round_trip(prepared: PreparedCase, case: Case) -> float:
    assert prepared.label is not None
    assert case.label is not None
    back = prepared.to_source((prepared.label > 0).float()[None], mode="linear")[0]
    assert tuple(back.shape) == case.grid.shape
    return _dsc(back > 0.5, case.label.data > 0)


def test_a_real_tumour_goes_to_three_millimetres_and_back(shared_data) -> None:
    names = {"flair": "flair_znorm", "t1c": "t1c_znorm"}
    case = _real(shared_data, "tumour_brats2013/pat0003", names, "seg")
    native = prepare(case, channels=["flair", "t1c"], settings=PreprocessSettings())
    assert _round_trip(native, case) == 1  # 1 mm already: voxels only move
    coarse = prepare(
        case, channels=["flair", "t1c"], settings=PreprocessSettings(spacing_mm=(3, 3, 3))
    )
    assert 1600 < float(coarse.brain.sum()) * 0.027 < 1800
    assert _round_trip(coarse, case) > 0.94


def test_real_small_lesions_keep_their_volume(shared_data) -> None:
    case = _real(shared_data, "ms_ljubljana/patient07", {"flair": "flair"}, "lesion")
    prepared = prepare(case, channels=["flair"], settings=PreprocessSettings(spacing_mm=(2, 2, 2)))
    assert prepared.label is not None
    assert case.label is not None
    assert float(prepared.label.sum()) * 0.008 == pytest.approx(
        case.label.volume_ml((1,)), rel=0.15
    )
    assert _round_trip(prepared, case) > 0.6


def test_a_real_oblique_whole_head_is_prepared(shared_data) -> None:
    scan = read_scan(shared_data / "ms_longitudinal_native/patient01/study1_FLAIR.nii.gz")
    prepared = prepare(
        Case("p", "p", {"flair": scan}),
        channels=["flair"],
        settings=PreprocessSettings(spacing_mm=(2, 2, 4)),
    )
    head_ml = float(prepared.brain.sum()) * 0.016
    assert 2500 < head_ml < 4500
    back = prepared.to_source(prepared.brain.float()[None], mode="linear")[0]
    assert float((back > 0.5).sum()) * scan.grid.voxel_volume_mm3 / 1000 == pytest.approx(
        head_ml, rel=0.03
    )
