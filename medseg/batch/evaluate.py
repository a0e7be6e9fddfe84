"""Folders of masks against folders of references."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import DataError, GeometryError
from medseg.io.nifti import read_label_map
from medseg.metrics.evaluate import MISSING, evaluate_masks, worst_scores
from medseg.metrics.lesions import lesion_table
from medseg.scan import GRID_TOLERANCE_MM, LabelMap

Row = dict[str, object]


def evaluate_folders(
    predictions: Path, references: Path, *, labels: tuple[int, ...] = ()
) -> tuple[list[Row], list[Row]]:
    """Return a row per reference case, and a row per lesion.

    A prediction is ``<name>``, ``<case>/<case>_mask.nii.gz`` or ``<case>_mask.nii.gz`` for the
    reference ``<name>`` = ``<case>.nii.gz``. One that is missing gets the worst score of every
    metric and stays in the mean.

    Parameters
    ----------
    predictions, references : Path
        Folders, or two files.
    labels : tuple of int
        Which labels are lesion; all but 0 when empty.

    Raises
    ------
    DataError
        No reference is there, or no place of predictions.
    GeometryError
        A prediction does not lie on its reference's grid.
    """
    for path, role in ((predictions, "Predictions"), (references, "References")):
        if not Path(path).exists():
            # A mistyped folder must not pass for one whose predictions are all missing.
            raise DataError(f"{role} must exist, but {path} does not.", hint="Check the path.")
    pairs = _pairs(Path(predictions), Path(references))
    cases: list[Row] = []
    lesions: list[Row] = []
    for case, predicted, reference in pairs:
        truth = read_label_map(reference, allow_empty=True)
        true = _inside(truth, labels)
        spacing_mm = truth.grid.spacing_mm
        if predicted is None:
            cases.append({"case": case, MISSING: 1, **worst_scores(true, spacing_mm=spacing_mm)})
            continue
        found = read_label_map(predicted, allow_empty=True)
        if not found.grid.matches(truth.grid, tolerance_mm=GRID_TOLERANCE_MM):
            raise GeometryError(
                f"A prediction must lie on its reference's grid, but {predicted} has shape "
                f"{found.grid.shape} and {reference} has {truth.grid.shape}, or they lie apart.",
                hint="Resample the prediction to the reference's grid.",
            )
        mask = _inside(found, labels)
        cases.append(
            {"case": case, MISSING: 0, **evaluate_masks(mask, true, spacing_mm=spacing_mm)}
        )
        lesions += [{"case": case, **row} for row in lesion_table(mask, true, grid=truth.grid)]
    return cases, lesions


def _inside(label_map: LabelMap, labels: tuple[int, ...]) -> np.ndarray:
    data = label_map.data.numpy()
    return np.isin(data, labels) if labels else data > 0


def _pairs(predictions: Path, references: Path) -> list[tuple[str, Path | None, Path]]:
    if references.is_file():
        return [(_stem(references), predictions if predictions.is_file() else None, references)]
    files = sorted(p for p in references.glob("*") if p.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise DataError(f"{references} must hold NIfTI masks, but it holds none.")
    return [(_stem(file), _match(predictions, file), file) for file in files]


def _match(predictions: Path, reference: Path) -> Path | None:
    case = _stem(reference)
    for candidate in (
        predictions / reference.name,
        predictions / case / f"{case}_mask.nii.gz",
        predictions / f"{case}_mask.nii.gz",
    ):
        if candidate.is_file():
            return candidate
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
