"""What nnU-Net is given and what is taken back; nnU-Net itself need not be installed."""

import json
from argparse import Namespace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.data.regions import WHOLE_TUMOUR
from medseg.data.training_set import TrainingCase
from medseg.errors import ConfigError
from medseg.experiment.cell import Cell
from medseg.io.atomic import write_table
from tools.nnunet.__main__ import TARGET, suffix_of
from tools.nnunet.cells import made_cell, source_dataset, source_seconds, templates
from tools.nnunet.data import Scheme, make_scheme, write_dataset

SHAPE = (5, 6, 7)


def case(*masks: torch.Tensor) -> TrainingCase:
    target = torch.stack([mask.float() for mask in masks])
    return TrainingCase(
        identifier="a",
        subject="a",
        image=torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)),
        present=torch.ones(2, dtype=torch.bool),
        target=target,
        known=torch.ones(len(masks), dtype=torch.bool),
        brain=torch.ones(SHAPE, dtype=torch.bool),
    )


def nested() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return whole, core, enhancing, and a lesion apart from them."""
    masks = torch.zeros(4, *SHAPE, dtype=torch.bool)
    masks[0, 1:4, 1:5, 1:6] = True
    masks[1, 1:4, 2:4, 1:5] = True
    masks[2, 2:3, 2:4, 2:4] = True
    masks[3, 4, 5] = True
    return masks[0], masks[1], masks[2], masks[3]


@pytest.mark.parametrize(
    "names", [("core", "whole"), ("enhancing", "whole", "core"), ("whole",), ("lesion",)]
)
def test_regions_come_back_from_the_labels(names: tuple[str, ...]) -> None:
    known = ("whole", "core", "enhancing", "lesion")
    masks: dict[str, torch.Tensor] = {k: m for k, m in zip(known, nested(), strict=True)}
    scheme = make_scheme(names, WHOLE_TUMOUR)
    label = scheme.label_map(case(*(masks[name] for name in names)), names)
    said = scheme.labels()
    assert list(said) == ["background", *scheme.names]
    for name in names:
        np.testing.assert_array_equal(np.isin(label, said[name]), masks[name].numpy())


def test_a_disease_of_another_source_is_a_label_apart() -> None:
    whole, core, _, lesion = nested()
    names = ("core", "whole", "lesion")
    scheme = make_scheme(names, {"whole": (1, 2, 3, 4), "core": (1, 3, 4)})
    assert scheme == Scheme(("whole", "core"), ("lesion",))
    assert scheme.labels() == {"background": 0, "whole": [1, 2], "core": [2], "lesion": [3]}
    label = scheme.label_map(case(core, whole, lesion), names)
    np.testing.assert_array_equal(label == 3, lesion.numpy())


def test_regions_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ConfigError, match="'oedema'"):
        make_scheme(("core", "oedema"), WHOLE_TUMOUR)


def test_a_data_set_has_what_nnunet_reads(tmp_path: Path) -> None:
    whole, core, *_ = nested()
    given = case(core, whole)
    names = ("core", "whole")
    write_dataset(
        tmp_path,
        {"case_0000": given},
        names=names,
        scheme=make_scheme(names, WHOLE_TUMOUR),
        channels=("flair", "t1c"),
        spacing_mm=(4.0, 3.0, 2.0),
    )
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "flair", "1": "t1c"}
    assert about["regions_class_order"] == [1, 2]
    image = nib.Nifti1Image.from_filename(tmp_path / "imagesTr" / "case_0000_0001.nii.gz")
    assert image.header.get_zooms() == (4.0, 3.0, 2.0)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), given.image[1].numpy())
    assert (tmp_path / "labelsTr" / "case_0000.nii.gz").is_file()


def write_cell(run: Path, cell: Cell, seconds: float) -> None:
    row = {"method": cell.method, "source": cell.source, "n": cell.n, "subset": cell.subset}
    rows = [{**row, "seed": cell.seed, "case": name, "region": "core"} for name in ("c", "d")]
    (run / "cells" / cell.identifier).mkdir(parents=True)
    write_table(run / "cells" / cell.identifier / "scores.tsv", rows)
    (run / "histories").mkdir(exist_ok=True)
    write_history(run, cell.identifier, seconds)


def test_subsets_test_cases_and_times_are_those_of_the_arm(tmp_path: Path) -> None:
    wanted = Cell("pr", "both", 2, "0+3")
    write_cell(tmp_path, wanted, 7.5)
    write_cell(tmp_path, Cell("pr", "ms", 2, "0+3"), 3.0)
    write_cell(tmp_path, Cell("ri", "none", 2, "0+3"), 3.0)
    (found,) = templates(tmp_path, "pr", "both", ["s0", "s1", "s2", "s3"])
    assert found.cell == wanted
    assert found.train == ("s0", "s3")
    assert found.test == ("c", "d")
    assert found.seconds == 7.5
    # Without a word about the source one is taken, not both.
    assert len(templates(tmp_path, "pr", None, ["s0", "s1", "s2", "s3"])) == 1
    with pytest.raises(ConfigError, match="pr on both"):
        templates(tmp_path, "dwp", None, ["s0"])


def write_history(run: Path, name: str, seconds: float) -> None:
    history = [{"step": 1, "seconds": 0.5 * seconds}, {"step": 2, "seconds": seconds}]
    write_table(run / "histories" / f"{name}.tsv", history)


def test_the_time_of_an_ensemble_is_that_of_all_its_members(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell = Cell("pr_x3", "both", 2, "0+3", seed)
        write_cell(tmp_path, cell, 7.5)
        for member in (1, 2):
            write_history(tmp_path, f"{cell.identifier}_member{member}", 2.0 * member + seed)
    found = templates(tmp_path, "pr_x3", "both", ["s0", "s1", "s2", "s3"])
    assert {template.cell.seed: template.seconds for template in found} == {
        0: 7.5 + 2.0 + 4.0,
        1: 7.5 + 3.0 + 5.0,
    }


def test_the_time_of_a_source_is_that_of_its_own_networks(tmp_path: Path) -> None:
    (tmp_path / "histories").mkdir()
    for name, seconds in (("ms_member0", 3.0), ("ms_member1", 4.0), ("ms_more_member0", 50.0)):
        write_history(tmp_path, f"source_{name}", seconds)
    assert source_seconds(tmp_path, "ms") == 7.0
    assert source_seconds(tmp_path, "ms_more") == 50.0
    with pytest.raises(ConfigError, match=r"source_both_member\*") as caught:
        source_seconds(tmp_path, "both")
    assert "--source-seconds" in str(caught.value)


def test_every_source_has_a_data_set_of_its_own() -> None:
    names = [source_dataset(["ms", "both", "generated"], n) for n in ("ms", "both", "generated")]
    # nnU-Net goes by the number alone.
    numbers = {name.removeprefix("Dataset").split("_")[0] for name in [*names, TARGET]}
    assert len(numbers) == 4


def test_a_row_of_scores_names_its_cell() -> None:
    cell = Cell("pr", "both", 5, "1+2")
    row = {"method": "pr", "source": "both", "n": "5", "subset": "1+2", "seed": "0", "dsc": "0.5"}
    assert made_cell(row) == cell
    assert made_cell(row, method="nnunet", source="none") == Cell("nnunet", "none", 5, "1+2")


@pytest.mark.parametrize(
    ("times", "seconds", "name"),
    [(1.0, None, ""), (10.0, None, "_x10"), (1.0, 7.0, "_7s"), (0.5, 7.0, "_x0.5_7s")],
)
def test_an_arm_with_more_time_has_another_name(
    times: float, seconds: float | None, name: str
) -> None:
    assert suffix_of(Namespace(times=times, seconds=seconds)) == name
