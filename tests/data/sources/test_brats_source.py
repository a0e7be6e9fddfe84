from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.data.sources.brats import BratsSettings, BratsSource, detect_convention
from medseg.errors import LabelError

Write = Callable[..., Path]
OLD = ("BraTS20_Training_{}_", "flair")
NEW = ("BraTS-GLI-00{}-000-", "t2f")
NEW_T2 = ("BraTS-GLI-00{}-000-", "t2w")
BIDS = ("sub-{}_", "T2w")


def _make(
    root: Path, style: tuple[str, str], masks: list[tuple[int, ...]], *write: Write
) -> BratsSource:
    stem, flair = style
    for index, labels in enumerate(masks, start=100):
        folder = root / stem.format(index)[:-1]
        write[0](folder / f"{stem.format(index)}{flair}.nii.gz")
        write[1](folder / f"{stem.format(index)}seg.nii.gz", labels)
    return BratsSource(BratsSettings(root=root))


@pytest.mark.parametrize(
    ("style", "masks", "convention", "harmonised"),
    [
        # The first case alone would look like another convention: the whole set decides.
        (OLD, [(1, 2), (1, 2, 4)], "124", [0, 1, 2, 4]),
        (OLD, [(1, 2, 3), (1, 2, 3, 4)], "1234", [0, 1, 2, 3, 4]),
        (NEW, [(1, 2), (1, 2, 3)], "123", [0, 1, 2, 4]),
        (NEW, [(1, 2, 4), (1, 2, 3, 4)], "123rc", [0, 1, 2, 4]),
        (OLD, [(1, 2), (2,)], "124", [0, 2]),
        (NEW_T2, [(1, 2), (1, 2, 3)], "123", [0, 1, 2, 4]),
        # T2w is the word of BIDS for any T2, and says nothing of the year.
        (BIDS, [(1, 2), (1, 2, 3, 4)], "1234", [0, 1, 2, 3, 4]),
    ],
)
def test_convention_of_the_whole_set(
    tmp_path: Path,
    write_image: Write,
    write_mask: Write,
    style: tuple[str, str],
    masks: list[tuple[int, ...]],
    convention: str,
    harmonised: list[int],
) -> None:
    source = _make(tmp_path, style, masks, write_image, write_mask)
    assert source.label_convention == convention
    label = source[1].label
    assert label is not None
    assert label.data.unique().tolist() == harmonised


def test_resection_cavity_becomes_background_and_that_is_told(
    tmp_path: Path,
    write_image: Write,
    write_mask: Write,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = _make(tmp_path, NEW, [(1, 4), (1, 3)], write_image, write_mask)
    with caplog.at_level("INFO"):
        label = source[0].label
    assert label is not None
    assert label.data.unique().tolist() == [0, 1]
    assert "4 resection cavity, which becomes background" in caplog.text


@pytest.mark.parametrize(
    ("style", "labels"), [(OLD, (1, 2, 3)), (BIDS, (1, 2, 3)), (NEW, (1, 2, 4))]
)
def test_ambiguous_set_is_refused_with_a_way_out(
    tmp_path: Path,
    write_image: Write,
    write_mask: Write,
    style: tuple[str, str],
    labels: tuple[int, ...],
) -> None:
    source = _make(tmp_path, style, [labels], write_image, write_mask)
    with pytest.raises(LabelError, match="Set 'label_convention'"):
        source[0]


def test_stated_convention_needs_no_guess(
    tmp_path: Path, write_image: Write, write_mask: Write
) -> None:
    _make(tmp_path, OLD, [(1, 2, 3)], write_image, write_mask)
    as_123 = BratsSource(BratsSettings(root=tmp_path, label_convention=123))  # type: ignore[arg-type]
    as_1234 = BratsSource(BratsSettings(root=tmp_path, label_convention="1234"))
    as_124 = BratsSource(BratsSettings(root=tmp_path, label_convention="124"))
    assert as_123[0].label.data.unique().tolist() == [0, 1, 2, 4]  # type: ignore[union-attr]
    assert as_1234[0].label.data.unique().tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    with pytest.raises(LabelError, match=r"among \[0, 1, 2, 4\].*also has \[3\]"):
        as_124[0]


def test_no_convention_from_other_labels() -> None:
    assert detect_convention({0, 1, 2}, recent_names=True) == "124"
    assert detect_convention({0, 3}, recent_names=False) is None


def test_listing_reads_no_file(tmp_path: Path) -> None:
    for name in ("HGG/Brats18_A_1/Brats18_A_1_t1ce.nii.gz", "LGG/Brats18_B_1/x_flair.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"not a scan")
    source = BratsSource(BratsSettings(root=tmp_path, label_required=False))
    assert source.identifiers == ("Brats18_A_1", "Brats18_B_1")
    assert source.subjects == ("Brats18_A", "Brats18_B")


def test_real_tumours(shared_data: Path) -> None:
    source = BratsSource(BratsSettings(root=shared_data / "tumour_brats2013"))
    assert source.identifiers == ("pat0001", "pat0003", "pat0004", "pat0005")
    assert source.label_convention == "1234"
    case = source[1]
    assert set(case.scans) == {"flair", "t1c"}
    assert case.label is not None
    assert case.brain is not None
    assert case.label.data.unique().tolist() == [0, 1, 2, 3, 4]
    assert 1000 < case.brain.volume_ml((1,)) < 2000
