"""Folders of masks against folders of references."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.batch.pairs import Pair, Unclear, find_pairs
from medseg.errors import GeometryError, MedsegError
from medseg.io.nifti import read_label_map
from medseg.metrics.evaluate import MISSING, evaluate_masks, worst_scores
from medseg.metrics.lesions import lesion_table
from medseg.scan import GRID_TOLERANCE_MM, LabelMap

log = logging.getLogger(__name__)

Row = dict[str, object]


@dataclass
class Evaluation:
    """A row per reference case, a row per lesion, and a row per file that could not be scored."""

    cases: list[Row] = field(default_factory=list)
    lesions: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)


def evaluate_folders(
    predictions: Path, references: Path, *, region: str | None = None, labels: tuple[int, ...] = ()
) -> Evaluation:
    """Score predictions case by case; what cannot be read or compared does not stop the others.

    Which prediction belongs to which reference is said in :func:`medseg.batch.pairs.find_pairs`.
    One that is missing, or that cannot be scored, gets the worst score of every metric and stays in
    the mean; a reference that cannot be read has no scores and is among the failures alone.

    Parameters
    ----------
    predictions, references : Path
        Folders, or files.
    region : str, optional
        Of the predictions that ``medseg predict`` wrote; the whole mask when not given.
    labels : tuple of int
        Which labels of the reference are lesion, or are the region; all but 0 when empty. Of
        predictions that medseg did not write they are the lesion, too.

    Raises
    ------
    DataError, ConfigError
        As :func:`medseg.batch.pairs.find_pairs`.
    """
    found = Evaluation()
    for pair in find_pairs(Path(predictions), Path(references), region=region, labels=labels):
        if isinstance(pair, Unclear):
            found.failures.append(_failure(pair.case, pair.error))
            continue
        row: Row | None = None
        try:
            truth = read_label_map(pair.reference, allow_empty=True)
            true, spacing_mm = _inside(truth, labels), truth.grid.spacing_mm
            row = {"case": pair.case, MISSING: 1, **worst_scores(true, spacing_mm=spacing_mm)}
            mask = _read_prediction(pair, truth)
            if mask is not None:
                scores = evaluate_masks(mask, true, spacing_mm=spacing_mm)
                lesions = lesion_table(mask, true, grid=truth.grid)
                found.lesions += [{"case": pair.case, **lesion} for lesion in lesions]
                row = {"case": pair.case, MISSING: 0, **scores}
        except Exception as error:
            # Any error, foreseen or not, costs this case alone; the traceback is in the log.
            found.failures.append(_failure(pair.case, error))
        if row is not None:
            found.cases.append(row)
    return found


def _read_prediction(pair: Pair, truth: LabelMap) -> np.ndarray | None:
    """Return the predicted mask, boolean (*s,); None where there is no prediction."""
    if pair.predicted is None:
        return None
    predicted = read_label_map(pair.predicted, allow_empty=True)
    if not predicted.grid.matches(truth.grid, tolerance_mm=GRID_TOLERANCE_MM):
        raise GeometryError(
            f"A prediction must lie on its reference's grid, but {pair.predicted} has shape "
            f"{predicted.grid.shape} and {pair.reference} has {truth.grid.shape}, or they lie "
            "apart.",
            hint="Resample the prediction to the reference's grid.",
        )
    return _inside(predicted, pair.values)


def _inside(label_map: LabelMap, labels: tuple[int, ...]) -> np.ndarray:
    data = label_map.data.numpy()
    return np.isin(data, labels) if labels else data > 0


def _failure(case: str, error: Exception) -> Row:
    log.error("%s could not be scored: %s", case, error)
    log.debug("traceback of %s", case, exc_info=error)
    is_foreseen = isinstance(error, MedsegError)
    return {
        "scan": case,
        "stage": "score",
        "reason": error.message if is_foreseen else f"{type(error).__name__}: {error}",
        "hint": error.hint if is_foreseen else "Not foreseen: see the log for the traceback.",
    }
