"""Which engine sees which windows of an image, and the probabilities that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from medseg.inference.compute import engine_for, with_profile
from medseg.inference.engines.engine import Engine
from medseg.inference.memory import Job, fitted
from medseg.inference.model import Model
from medseg.inference.posterior import laid_back, sample_count, sample_probabilities, seen_box
from medseg.inference.settings import PredictSettings
from medseg.networks.precision import resolve_device
from medseg.shapes import Image


@dataclass(frozen=True, eq=False)
class Plan:
    """How one image will be predicted: made beforehand, so that it can be told of afterwards.

    Parameters
    ----------
    settings : PredictSettings
        With the windows that fit into memory.
    window : tuple of int
        Voxels of a window along the network's axes.
    engine : Engine or None
        None is the network itself, eagerly.
    box : tuple of 3 slices
        What the network is shown of the image.
    """

    settings: PredictSettings
    window: tuple[int, ...]
    engine: Engine | None
    box: tuple[slice, ...]

    def describe(self) -> dict[str, object]:
        """Return engine, precision, window and the part of the image, for the record."""
        engine = self.engine
        return {
            "engine": "eager" if engine is None else engine.name,
            "precision": self.settings.precision if engine is None else engine.precision,
            "profile": self.settings.profile,
            "window_voxels": list(self.window),
            "box_voxels": [[side.start, side.stop] for side in self.box],
        }


def plan_prediction(
    model: Model,
    image: Image,
    *,
    settings: PredictSettings | None = None,
    source_shape: tuple[int, int, int] | None = None,
) -> Plan:
    """Return engine and windows for a prepared image; see :func:`predict_image`."""
    wanted = with_profile(settings or PredictSettings())
    box: tuple[slice, ...] = tuple(slice(0, length) for length in image.shape[1:])
    if wanted.profile != "best":
        box = seen_box(image)
    seen = image[(slice(None), *box)]
    device = resolve_device(wanted.device)
    model.network.to(device)
    engine = engine_for(model, seen, settings=wanted)
    samples = sample_count(model.network, wanted)
    job = Job.of(model, seen, source_shape=source_shape, engine=engine, samples=samples)
    chosen = fitted(wanted, job=job, device=device, trained=model.head.windowed(wanted))
    if engine is not None and not model.spec.is_random:
        # An engine has a precision of its own.
        chosen = replace(chosen, precision="float32")
    return Plan(chosen, chosen.window or job.window_shape, engine, box)


def predict_image(
    model: Model,
    image: Image,
    *,
    settings: PredictSettings | None = None,
    source_shape: tuple[int, int, int] | None = None,
    plan: Plan | None = None,
) -> Iterator[Tensor]:
    """Yield the probabilities (n, x, y, z) of a prepared image, one posterior sample after another.

    The engine and the windows are those of the settings; where these leave them open, what is
    fastest, windows of the size that the model was trained on, and where that is not known what
    fits into memory. Only profile "best" looks at more than the box of what is not
    0: a margin of nothing changes the statistics that normalisation sees.

    Parameters
    ----------
    model : Model
        Moved to the device of the settings. A deterministic one yields once.
    image : Tensor, shape (c, x, y, z)
    settings : PredictSettings, optional
    source_shape : tuple of 3 int, optional
        Voxels of the case's own grid, whose maps need memory too; those of the image when left out.
    plan : Plan, optional
        What :func:`plan_prediction` returned for this image, in place of the settings.

    Raises
    ------
    ConfigError
        Settings that do not fit the model or this machine, or too little memory.
    """
    if plan is None:
        plan = plan_prediction(model, image, settings=settings, source_shape=source_shape)
    part = (slice(None), *plan.box)
    seen = image[part].contiguous()
    for sample in sample_probabilities(
        model.network, seen, head=model.head, settings=plan.settings, engine=plan.engine
    ):
        yield laid_back(sample, plan.box, shape=image.shape[1:], mode=model.spec.regions.mode)
