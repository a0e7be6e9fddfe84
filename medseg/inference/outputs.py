"""The files of a prediction.

For a case ``c``: ``c/c_mask.nii.gz`` (all regions in one label map), ``c_prob.nii.gz`` and
``c_uncertainty.nii.gz`` (entropy of the mean probability, nats), with several posterior samples
also ``c_mutual_information.nii.gz`` (nats) and ``c_std.nii.gz``, and ``c.json``. With several
regions each has its own ``c_<region>_mask.nii.gz``, ``c_<region>_prob.nii.gz`` and so on, because
regions overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import ConfigError
from medseg.inference.lesions import paint_regions
from medseg.inference.predict import Prediction
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
    folder: Path, identifier: str, *, regions: tuple[str, ...], samples: int
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

    Returns
    -------
    dict
        ``"mask"`` (label map of all regions), ``"json"``, and ``"<region>/<kind>"`` for the kinds
        mask, prob, uncertainty and, with several samples, mutual_information and std. With one
        region ``"<region>/mask"`` is ``"mask"``.
    """
    place = case_folder(folder, identifier)
    kinds = ["mask", "prob", "uncertainty"]
    if samples > 1:
        kinds += ["mutual_information", "std"]
    paths = {"mask": place / f"{identifier}_mask.nii.gz"}
    for region in regions:
        stem = identifier if len(regions) == 1 else f"{identifier}_{region}"
        paths |= {f"{region}/{kind}": place / f"{stem}_{kind}.nii.gz" for kind in kinds}
    paths["json"] = place / f"{identifier}.json"
    return paths


def write_prediction(
    prediction: Prediction, folder: Path, *, provenance: Mapping[str, object] | None = None
) -> dict[str, Path]:
    """Write a prediction and return the files by what they hold, see :func:`output_paths`.

    Parameters
    ----------
    prediction : Prediction
    folder : Path
        The output folder of all cases; the case gets a folder in it.
    provenance : mapping, optional
        Goes into the JSON file, which is written last: where it stands, the rest is complete.
    """
    paths = output_paths(
        folder, prediction.identifier, regions=prediction.regions, samples=prediction.samples
    )
    paths["json"].unlink(missing_ok=True)
    labels, order = paint_regions(prediction.mask, definition=prediction.definition)
    write_label_map(paths["mask"], LabelMap(labels, prediction.grid))
    for index, region in enumerate(prediction.regions):
        _write_maps(
            prediction, index, {k: p for k, p in paths.items() if k.startswith(f"{region}/")}
        )
    write_json(
        paths["json"],
        {
            "case": prediction.identifier,
            "subject": prediction.subject,
            "samples": prediction.samples,
            "label_map": {
                "values": {name: i + 1 for i, name in enumerate(prediction.regions)},
                "painted_in_order": [prediction.regions[i] for i in order],
            },
            "regions": [_region_summary(prediction, name) for name in prediction.regions],
            "files": {kind: path.name for kind, path in paths.items() if kind != "json"},
            "computed": dict(prediction.computed),
            "provenance": dict(provenance or {}),
        },
    )
    return paths


def _write_maps(prediction: Prediction, index: int, paths: Mapping[str, Path]) -> None:
    maps: dict[str, Tensor] = {
        "prob": prediction.probability[index],
        "uncertainty": prediction.entropy_nats[index],
        "mutual_information": prediction.mutual_information_nats[index],
        "std": prediction.std[index],
    }
    for key, path in paths.items():
        kind = key.rsplit("/", 1)[1]
        if kind in maps:
            write_scan(path, Scan(maps[kind].float().contiguous(), prediction.grid))
        elif len(prediction.regions) > 1:
            mask = prediction.mask[index].to(torch.uint8)
            write_label_map(path, LabelMap(mask, prediction.grid))


def _region_summary(prediction: Prediction, name: str) -> dict[str, object]:
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
        "lesions": lesions,
    }


def cohort_rows(prediction: Prediction) -> list[dict[str, object]]:
    """Return one row per region for a table over cases."""
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
            }
        )
    return rows
