"""The page that goes with a model, for people."""

from __future__ import annotations

import json
from typing import Any

#: Of whom the card tells how many they are.
_PEOPLE = ("subjects", "seen_subjects")


def model_card(spec: dict[str, Any], *, n_weights: int) -> str:
    """Return a model's card in Markdown.

    Parameters
    ----------
    spec : dict
        The model's description as JSON values.
    n_weights : int
        Numbers in its tensors.
    """
    regions, preprocess = spec["regions"], spec["preprocess"]
    architecture = spec["architecture"]
    random = {
        "variational": spec["variational"],
        "SWAG": spec.get("swag_rank"),
        "dropout": architecture.get("dropout"),
    }
    kind = " ".join(name for name, is_there in random.items() if is_there) or "deterministic"
    several = f"{spec['members']} members, each a " if spec.get("members", 1) > 1 else ""
    missing = "may be absent, one or several" if spec["allow_missing"] else "are all needed"
    lines = [
        f"# Segmentation model, method `{spec['method']}`",
        "",
        "For research. Not a medical device: no decision about a patient may rest on it.",
        "",
        "## What it takes and gives",
        "",
        f"- Input: {', '.join(spec['channels'])}; channels {missing}.",
        f"- Prepared as: {_pairs(preprocess)}.",
        f"- Output ({regions['mode']}):",
        *(
            f"  - `{name}`: labels {', '.join(map(str, spec['region_definition'][name]))} of the "
            "training data"
            for name in regions["names"]
        ),
        f"- Network: {several}{kind} {architecture['dims']}D U-Net, widths "
        f"{'-'.join(map(str, architecture['widths']))}, {n_weights:,} numbers; logits divided by "
        f"temperature {spec['temperature']:g}.",
        *_refinement(spec.get("intensities")),
        "",
        "## How it was trained",
        "",
        *_training(spec["training"]),
        "",
        "## Limits",
        "",
        "It was fitted to the data named above. On other scanners, sequences, ages or diseases its "
        "masks, probabilities and intervals hold no promise until they were measured there.",
        "",
    ]
    return "\n".join(lines)


def _refinement(intensities: dict[str, Any] | None) -> list[str]:
    if intensities is None:
        return []
    return [
        f"- Refined: held against each scan's own intensities, {len(intensities['tissues'])} "
        f"Gaussians with what the training scans look like as their prior "
        f"({_pairs(intensities['settings'])})."
    ]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())


def _training(training: dict[str, Any]) -> list[str]:
    if not training:
        return ["Not recorded."]
    told = training | {key: len(training[key]) for key in _PEOPLE if key in training}
    return [f"- {key}: {json.dumps(value, default=str)}" for key, value in told.items()]
