"""How a prediction was made, as far as it decides what comes out: what a promise depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg.inference.predict import Prediction
from medseg.inference.provenance import settings_to_json

#: Settings that are compared as they were asked for.
ASKED = (
    "profile",
    "windows",
    "window",
    "max_window_voxels",
    "overlap",
    "posterior",
    "refine",
    "precision",
    "threshold",
    "lesions",
)


def conditions(prediction: Prediction) -> dict[str, Any]:
    """Return how a prediction was made, as plain JSON.

    ``samples`` and ``int8`` are what became of the settings on this model and machine, and
    ``window_voxels`` is what the network saw at once. Engines and floating-point formats that are
    left open are taken where they agree, so that they are not compared.
    """
    plain, computed = settings_to_json(prediction.settings), prediction.computed
    return {name: plain[name] for name in ASKED} | {
        "samples": prediction.samples,
        "int8": computed["precision"] == "int8",
        "window_voxels": [
            min(side, length)
            for side, length in zip(computed["window_voxels"], _box(prediction), strict=False)
        ],
    }


def joined(made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the conditions of several predictions by the same settings.

    ``int8`` says whether it occurred, ``window_voxels`` has the smallest along each axis.
    """
    return made[0] | {
        "int8": any(one["int8"] for one in made),
        "window_voxels": np.min([one["window_voxels"] for one in made], axis=0).tolist(),
    }


def differing(prediction: Prediction, known: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the conditions that are not those of a calibration.

    Windows differ where the image was cut along an axis and the network saw less of it at once than
    of any case of the calibration: little memory has an effect then, too.

    Parameters
    ----------
    prediction : Prediction
    known : dict
        What :func:`joined` returned for the calibration.
    """
    now = conditions(prediction)
    # Before windows could be asked for there was one answer for models that do not tell a patch;
    # and none could be refined.
    known = {"windows": "trained", "refine": True} | known
    names = [name for name in (*ASKED, "samples") if now[name] != known.get(name)]
    if now["int8"] and not known.get("int8"):
        names.append("int8")
    sides = zip(
        now["window_voxels"], _box(prediction), known.get("window_voxels", ()), strict=False
    )
    if any(seen < length and seen < least for seen, length, least in sides):
        names.append("window_voxels")
    return tuple(names)


def _box(prediction: Prediction) -> list[int]:
    """Return the voxels of what was shown to the network along each axis."""
    return [stop - start for start, stop in prediction.computed["box_voxels"]]
