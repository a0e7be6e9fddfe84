from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.sources.folder import FolderSettings, FolderSource, pattern_to_regex
from medseg.errors import ConfigError, DataError, LabelError, ScanError

Write = Callable[..., Path]
NAMES = st.text(alphabet="abcXYZ019-_.+( ", min_size=1, max_size=8)


@given(NAMES)
def test_pattern_finds_the_name_it_was_filled_with(name: str) -> None:
    pattern = "sites/**/{case}/{case}_*FLAIR?.nii.gz"
    path = f"sites/a/b/{name}/{name}_3d.FLAIR2.nii.gz"
    found = pattern_to_regex(pattern).fullmatch(path)
    assert found is not None
    assert found["case"] == name
    assert pattern_to_regex(pattern).fullmatch(path.replace(f"{name}_3d", f"q{name}_3d")) is None


def test_flat_folder(tmp_path: Path, write_image: Write, write_mask: Write) -> None:
    for index, case in enumerate(("a_01", "b_02")):
        write_image(tmp_path / "img" / f"{case}_0000.nii.gz", seed=index)
        write_mask(tmp_path / "lab" / f"{case}.nii.gz", (3, 7))
    write_image(tmp_path / "img" / "a_01_0001.nii.gz")
    source = FolderSource(
        FolderSettings(
            root=tmp_path,
            images={"flair": "img/{case}_0000.nii.gz", "t1c": "img/{case}_0001.nii.gz"},
            label="lab/{case}.nii.gz",
            labels={3: 1, 7: 0},
            subject_pattern="^([a-z])",
        )
    )
    assert source.identifiers == ("a_01", "b_02")
    assert source.subjects == ("a", "b")
    assert set(source[0].scans) == {"flair", "t1c"}
    assert set(source[1].scans) == {"flair"}
    assert source[1].label.data.unique().tolist() == [0, 1]  # type: ignore[union-attr]


def test_refusals(tmp_path: Path, write_image: Write, write_mask: Write) -> None:
    write_image(tmp_path / "p1" / "x_flair.nii.gz")
    write_image(tmp_path / "p1" / "y_flair.nii.gz")
    write_mask(tmp_path / "p1" / "seg.nii.gz", (5,))

    def make(pattern: str, **more: object) -> FolderSource:
        return FolderSource(FolderSettings(root=tmp_path, images={"flair": pattern}, **more))  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"\{case\}"):
        make("p1/x_flair.nii.gz")
    with pytest.raises(DataError, match=r"p1/x_flair.* and p1/y_flair"):
        make("{case}/*_flair.nii.gz")
    with pytest.raises(DataError, match="none of the 3 NIfTI files"):
        make("{case}/z_flair.nii.gz")
    with pytest.raises(ScanError, match="must have a mask"):
        make("{case}/x_flair.nii.gz", label_required=True)
    with pytest.raises(ScanError, match="'t2'"):
        make("{case}/x_flair.nii.gz", required=("t2",))
    with pytest.raises(LabelError, match=r"\[5\]"):
        make("{case}/x_flair.nii.gz", label="{case}/seg.nii.gz", labels={1: 1})[0]


def test_real_label_maps_as_flat_folder(shared_data: Path) -> None:
    source = FolderSource(
        FolderSettings(
            root=shared_data / "ms_mslesseg",
            images={"flair": "{case}/flair.nii.gz"},
            label="{case}/mask.nii.gz",
        )
    )
    assert source.subjects == ("P14", "P18")
