"""The files of a prediction.

For a case ``c``: ``c/c_mask.nii.gz`` (all regions in one label map), ``c_prob.nii.gz`` and
``c_uncertainty.nii.gz`` (entropy of the mean probability, nats), with several posterior samples
also ``c_mutual_information.nii.gz`` (nats) and ``c_std.nii.gz``, and ``c.json``. A calibrated model
adds ``c_inner.nii.gz`` and ``c_outer.nii.gz``, the conformal masks. With several
regions each has its own ``c_<region>_mask.nii.gz``, ``c_<region>_prob.nii.gz`` and so on, because
regions overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import ConfigError
from medseg.inference.decide import Decision
from medseg.inference.lesions import paint_regions
from medseg.inference.predict import Prediction
from medseg.inference.words import describe_decision, describe_region
from medseg.io.atomic import write_json
from medseg.io.nifti import write_label_map, write_scan
from medseg.scan import LabelMap, Scan


def case_folder(folder: Path, identifier: str) -> Path:
    """Return where the files of a case go.

    Raises
    ------
    ConfigError
        An identifier that cannot name a file: it would be written somewhere else.
    """
    if not identifier or identifier in {".", ".."} or set(identifier) & set('/\\:*?"<>|\0'):
        raise ConfigError(
            f"An identifier names files and holds no separator, but it is {identifier!r}.",
            hint="Rename the case.",
        )
    return Path(folder) / identifier


def output_paths(
    folder: Path,
    identifier: str,
    *,
    regions: tuple[str, ...],
    samples: int,
    conformal: tuple[str, ...] = (),
) -> dict[str, Path]:
    """Return the files of a prediction by what they hold.

    Parameters
    ----------
    folder : Path
        The output folder of all cases.
    identifier : str
    regions : tuple of str
    samples : int
        Posterior samples; maps of their spread exist for two and more.
    conformal : tuple of str
        Regions that have an inner and an outer mask.

    Returns
    -------
    dict
        ``"mask"`` (label map of all regions), ``"json"``, and ``"<region>/<kind>"`` for the kinds
        mask, prob, uncertainty, with several samples mutual_information and std, and for conformal
        regions inner and outer. With one region ``"<region>/mask"`` is ``"mask"``.
    """
    place = case_folder(folder, identifier)
    kinds = ["mask", "prob", "uncertainty"]
    if samples > 1:
        kinds += ["mutual_information", "std"]
    paths = {"mask": place / f"{identifier}_mask.nii.gz"}
    for region in regions:
        stem = identifier if len(regions) == 1 else f"{identifier}_{region}"
        own = [*kinds, "inner", "outer"] if region in conformal else kinds
        paths |= {f"{region}/{kind}": place / f"{stem}_{kind}.nii.gz" for kind in own}
    paths["json"] = place / f"{identifier}.json"
    return paths


def write_prediction(
    prediction: Prediction,
    folder: Path,
    *,
    provenance: Mapping[str, object] | None = None,
    decision: Decision | None = None,
) -> dict[str, Path]:
    """Write a prediction and return the files by what they hold, see :func:`output_paths`.

    Files of an earlier prediction of the case that this one has no counterpart for are removed.

    Parameters
    ----------
    prediction : Prediction
    folder : Path
        The output folder of all cases; the case gets a folder in it.
    provenance : mapping, optional
        Goes into the JSON file, which is written last: where it stands, the rest is complete.
    decision : Decision, optional
        What the model's calibration makes of the prediction.
    """
    decided = [] if decision is None else decision.regions
    paths = output_paths(
        folder,
        prediction.identifier,
        regions=prediction.regions,
        samples=prediction.samples,
        conformal=tuple(
            name
            for name, one in zip(prediction.regions, decided, strict=False)
            if one.inner is not None and one.outer is not None
        ),
    )
    stale = _stale(paths, folder, prediction)
    paths["json"].unlink(missing_ok=True)
    for path in stale:
        path.unlink(missing_ok=True)
    labels, order = paint_regions(prediction.mask, definition=prediction.definition)
    write_label_map(paths["mask"], LabelMap(labels, prediction.grid))
    for index, region in enumerate(prediction.regions):
        own = {k: p for k, p in paths.items() if k.startswith(f"{region}/")}
        _write_maps(prediction, index, own, decision)
    write_json(
        paths["json"],
        {
            "case": prediction.identifier,
            "subject": prediction.subject,
            "samples": prediction.samples,
            # The scan's file held no affine: left and right may be the wrong way round.
            "affine_is_guessed": prediction.grid.is_guessed,
            **describe_decision(decision),
            "label_map": {
                "values": {name: i + 1 for i, name in enumerate(prediction.regions)},
                "painted_in_order": [prediction.regions[i] for i in order],
            },
            "regions": [
                _region_summary(prediction, index, decision)
                for index in range(len(prediction.regions))
            ],
            "files": {kind: path.name for kind, path in paths.items() if kind != "json"},
            "computed": dict(prediction.computed),
            "provenance": dict(provenance or {}),
        },
    )
    return paths


def _stale(paths: Mapping[str, Path], folder: Path, prediction: Prediction) -> list[Path]:
    """Return what an earlier run may have left of this case and this one does not write.

    Maps that not every run makes, and what the case's JSON file says there is, which may be of
    other regions. Another file in the case's folder is somebody's own.
    """
    identifier, place = prediction.identifier, paths["json"].parent
    every = output_paths(
        folder,
        identifier,
        regions=prediction.regions,
        samples=2,
        conformal=prediction.regions,
    )
    names = {path.name for path in every.values()}
    # A file that is not there, or none of ours, names nothing.
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        names |= set(json.loads(paths["json"].read_text(encoding="utf-8"))["files"].values())
    known = re.compile(re.escape(identifier) + r"_[^/\\]*\.nii\.gz")
    gone = {name for name in names if isinstance(name, str) and known.fullmatch(name)}
    return [place / name for name in sorted(gone - {path.name for path in paths.values()})]


def _write_maps(
    prediction: Prediction, index: int, paths: Mapping[str, Path], decision: Decision | None
) -> None:
    maps: dict[str, Tensor] = {
        "prob": prediction.probability[index],
        "uncertainty": prediction.entropy_nats[index],
        "mutual_information": prediction.mutual_information_nats[index],
        "std": prediction.std[index],
    }
    masks: dict[str, Tensor | None] = {}
    if len(prediction.regions) > 1:
        masks["mask"] = prediction.mask[index]
    if decision is not None:
        masks |= {"inner": decision.regions[index].inner, "outer": decision.regions[index].outer}
    for key, path in paths.items():
        kind = key.rsplit("/", 1)[1]
        if kind in maps:
            write_scan(path, Scan(maps[kind].float().contiguous(), prediction.grid))
        elif (mask := masks.get(kind)) is not None:
            write_label_map(path, LabelMap(mask.to(torch.uint8), prediction.grid))


def _region_summary(
    prediction: Prediction, index: int, decision: Decision | None
) -> dict[str, object]:
    name, voxel_mm3 = prediction.regions[index], prediction.grid.voxel_volume_mm3
    interval = prediction.volume_interval(name)
    lesions = [asdict(lesion) for lesion in prediction.lesions if lesion.region == name]
    return {
        "name": name,
        "volume_ml": prediction.volume_ml(name),
        "volume_samples_ml": {
            "low": interval.low_ml,
            "median": interval.median_ml,
            "high": interval.high_ml,
            "percentiles": [5, 50, 95],
        },
        **describe_region(decision, index, voxel_volume_mm3=voxel_mm3),
        "lesions": lesions,
    }


def cohort_rows(
    prediction: Prediction, decision: Decision | None = None
) -> list[dict[str, object]]:
    """Return one row per region for a table over cases; see :func:`write_prediction`."""
    rows: list[dict[str, object]] = []
    for index, name in enumerate(prediction.regions):
        interval, mask = prediction.volume_interval(name), prediction.mask[index]
        of_region = [lesion for lesion in prediction.lesions if lesion.region == name]
        rows.append(
            {
                "case": prediction.identifier,
                "subject": prediction.subject,
                "region": name,
                "volume_ml": prediction.volume_ml(name),
                "volume_low_ml": interval.low_ml,
                "volume_median_ml": interval.median_ml,
                "volume_high_ml": interval.high_ml,
                "lesions": len(of_region),
                "mean_std": float(prediction.std[index][mask].mean()) if mask.any() else None,
                "samples": prediction.samples,
                "calibrated": decision is not None,
                **({} if decision is None else _decision_columns(decision, index)),
            }
        )
    return rows


def _decision_columns(decision: Decision, index: int) -> dict[str, object]:
    region = decision.regions[index]
    # The ledger keeps rows as JSON, which knows no infinity.
    is_finite = region.high_ml is not None and isfinite(region.high_ml)
    high_ml = region.high_ml if is_finite else None
    return {
        "coverage": decision.coverage,
        "conformal_low_ml": region.low_ml,
        "conformal_high_ml": high_ml,
        "review": decision.needs_review,
        "doubt": decision.doubt,
        "doubt_percentile": decision.doubt_percentile,
        "settings_that_differ": ", ".join(decision.differing),
        "reasons": "; ".join(sign.words for sign in decision.reasons),
    }
