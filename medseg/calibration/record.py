"""What is kept of a calibration, beside the model that it belongs to."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from medseg.calibration.typical import Typical
from medseg.errors import ModelError
from medseg.io.atomic import write_json
from medseg.settings import settings

FORMAT = 2
NAME = "calibration.json"
_Share = Field(ge=0, le=1)


@settings
class LesionCheck:
    """Whether the probability of a predicted lesion is the chance that it is one.

    Parameters
    ----------
    lesions : int
        Predicted in all calibration cases together.
    mean_probability, true_share : float or None
        Of these lesions: mean share of samples that have them, and share of them that lie on the
        reference. None without any lesion.
    brier, ece : float or None
        Of the same, per lesion.
    """

    lesions: int = Field(ge=0)
    mean_probability: float | None = None
    true_share: float | None = None
    brier: float | None = None
    ece: float | None = None


@settings
class RegionCalibration:
    """What was learned about one region.

    Parameters
    ----------
    temperature : float
        The logits of each sample are divided by it.
    nll_before_nats, nll_after_nats, ece_before, ece_after : float
        Per voxel of the brain, at the network's spacing, of the probabilities that ``medseg
        predict`` gives, refined where it refines: at the model's own temperature, and at those
        fitted to the other subjects. In files of before of the network's own probabilities, at the
        temperature fitted to the same cases, of all classes together where these share one.
    outer_cut, inner_cut : float or None
        Cuts of the conformal masks; None where there were too few cases.
    missed_share, false_share : float or None
        Means of both losses over the calibration cases at these cuts.
    volume_factor : float or None
        Quantile of the normalised log residual of the volume; None means infinite: there were too
        few cases.
    volume_residuals : tuple of float
        All of them, sorted.
    signs : dict
        Name of each sign of doubt -> its value for every subject, in one order of subjects.
    shape : Typical
        Features of the reference masks.
    lesions : LesionCheck
    """

    temperature: float = Field(gt=0)
    nll_before_nats: float
    nll_after_nats: float
    ece_before: float
    ece_after: float
    outer_cut: float | None = _Share
    inner_cut: float | None = _Share
    missed_share: float | None = _Share
    false_share: float | None = _Share
    volume_factor: float | None = Field(ge=0)
    volume_residuals: tuple[float, ...]
    signs: dict[str, tuple[float, ...]]
    shape: Typical
    lesions: LesionCheck


@settings
class Calibration:
    """What a model's predictions of labelled cases say about its predictions of others.

    Parameters
    ----------
    method : "held-out" or "cross-fitted"
        On cases that the model never saw, or on its training cases, each predicted by a network
        that was trained without it. Those networks are not the model: they saw fewer cases and
        usually err more, so that what they say of it is an estimate without proof.
    n : int
        Subjects, each of which counts once.
    cases : int
    coverage : float
        Of volume intervals; masks allow a mean loss of the rest to 1.
    review_share : float
        Share of usual cases that may be sent to a human.
    volume_floor : float
        See :func:`medseg.calibration.conformal.log_volume_spread`.
    conditions : dict
        How the predictions were made, see :mod:`medseg.inference.conditions`. Promises hold for
        predictions that are made so.
    regions : dict
    intensity : Typical
        Of prepared images.
    intensity_distances : tuple of float
        Of every subject from the others, in the order of the regions' signs.
    model_sha256 : str
        Of the model's weights and description; empty until it is kept beside one.
    versions : dict
    """

    method: Literal["held-out", "cross-fitted"]
    n: int = Field(ge=2)
    cases: int = Field(ge=2)
    coverage: float = Field(gt=0, lt=1)
    review_share: float = Field(gt=0, lt=1)
    volume_floor: float = Field(gt=0)
    conditions: dict[str, Any]
    regions: dict[str, RegionCalibration] = Field(min_length=1)
    intensity: Typical
    intensity_distances: tuple[float, ...]
    model_sha256: str = ""
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_value_a_subject(self) -> "Calibration":
        values = [one for region in self.regions.values() for one in region.signs.values()]
        if any(len(one) != self.n for one in [*values, self.intensity_distances]):
            raise ValueError(f"each sign must have a value for each of {self.n} subjects")
        return self

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the regions, in their order."""
        return tuple(region.temperature for region in self.regions.values())


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    plain = TypeAdapter(Calibration).dump_python(calibration, mode="json")
    write_json(path, {"format": FORMAT, **plain})


def read_calibration(
    path: Path, *, model_sha256: str, regions: tuple[str, ...]
) -> Calibration | None:
    """Return the calibration of a model, or None where there is none.

    Parameters
    ----------
    path : Path
    model_sha256 : str
        Of the model it is to be used with.
    regions : tuple of str
        Of the model.

    Raises
    ------
    ModelError
        It is damaged, or belongs to another model or other regions.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
        found = TypeAdapter(Calibration).validate_python(values)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"A model's {NAME} must be one that medseg wrote, but {path} is not: {error}.",
            hint="Calibrate again with `medseg calibrate`, or delete the file.",
        ) from error
    if found.model_sha256 != model_sha256 or tuple(found.regions) != regions:
        raise ModelError(
            f"A calibration holds for the weights and settings of the model that it was fitted to, "
            f"but {path} was fitted to another model ({found.model_sha256[:12]}, not "
            f"{model_sha256[:12]}; regions {list(found.regions)}).",
            hint="Calibrate again with `medseg calibrate`, or delete the file.",
        )
    return found
