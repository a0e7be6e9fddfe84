"""From cases to what translators are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medseg.data.source import CaseSource
from medseg.data.training_set import TrainingCase
from medseg.errors import DataError
from medseg.preprocess.brain import brain_mask
from medseg.preprocess.normalise import Scaling, scaling
from medseg.preprocess.prepare import PreparedCase, PreprocessSettings, prepare
from medseg.scan import Case
from medseg.translation.slices import stack_neighbours


def paired_cases(
    source: CaseSource,
    *,
    channels: Sequence[str],
    target: str,
    reach: int,
    preprocess: PreprocessSettings,
) -> tuple[list[TrainingCase], Scaling]:
    """Return cases whose image is the input's stacks, then the true output, and its grey values.

    Raises
    ------
    DataError
        A case lacks one of the modalities.
    """
    made, grey = [], []
    for case in cases_with(source, (*channels, target)):
        prepared = prepare(case, channels=(*channels, target), settings=preprocess)
        stacks = stack_neighbours(prepared.image[:-1], reach=reach)
        made.append(_training_case(prepared, torch.cat([stacks, prepared.image[-1:]])))
        grey.append(_grey(case, target))
    return made, _median(grey)


def domain_cases(
    source: CaseSource, *, channels: Sequence[str], reach: int, preprocess: PreprocessSettings
) -> tuple[list[TrainingCase], Scaling]:
    """Return cases whose image is the stacks of ``channels``, and the last one's grey values.

    Raises
    ------
    DataError
        A case lacks one of the modalities.
    """
    made, grey = [], []
    for case in cases_with(source, channels):
        prepared = prepare(case, channels=channels, settings=preprocess)
        made.append(_training_case(prepared, stack_neighbours(prepared.image, reach=reach)))
        grey.append(_grey(case, channels[-1]))
    return made, _median(grey)


def thin_cases(
    source: CaseSource,
    *,
    channels: Sequence[str],
    reach: int,
    axis: int,
    preprocess: PreprocessSettings,
) -> list[TrainingCase]:
    """Return one case per scan, with the through-plane axis first and neighbouring planes stacked.

    Intensities are z-scores of the brain, and so is what lies outside it.

    Raises
    ------
    DataError
        A case lacks one of the modalities.
    """
    raw = PreprocessSettings(
        spacing_mm=preprocess.spacing_mm,
        orientation=preprocess.orientation,
        crop_to_brain=preprocess.crop_to_brain,
        margin_mm=preprocess.margin_mm,
        normalise="none",
    )
    made = []
    for case in cases_with(source, channels):
        prepared = prepare(case, channels=channels, settings=raw)
        for data in prepared.image:
            scale = scaling(data, prepared.brain, kind="zscore")
            planes = ((data - scale.offset) / scale.scale).movedim(axis, 0)[None]
            stacks = stack_neighbours(planes, reach=reach)
            made.append(_training_case(prepared, stacks, axis=axis))
    return made


def cases_with(source: CaseSource, names: Sequence[str]) -> Iterator[Case]:
    """Yield the cases of a source.

    Raises
    ------
    DataError
        A case lacks one of the modalities ``names``.
    """
    for index in range(len(source)):
        case = source[index]
        missing = [name for name in names if name not in case.scans]
        if missing:
            raise DataError(
                f"Each case of {source.name} must have {list(names)}, but {case.identifier!r} "
                f"lacks {missing}.",
                hint="Add the scan or leave the case out; method cyclegan learns without pairs.",
            )
        yield case


def _training_case(prepared: PreparedCase, image: Tensor, *, axis: int = 0) -> TrainingCase:
    label = prepared.label
    lesion = torch.zeros_like(prepared.brain) if label is None else label > 0
    # The brain in the place of the background: no lesion is sought there.
    target = torch.stack([prepared.brain, lesion]).float()
    return TrainingCase(
        identifier=prepared.identifier,
        subject=prepared.subject,
        image=image,
        present=torch.ones(len(image), dtype=torch.bool),
        target=target.movedim(axis + 1, 1),
        known=torch.tensor([True, label is not None]),
        brain=prepared.brain.movedim(axis, 0),
        has_background=True,
    )


def _grey(case: Case, name: str) -> Scaling:
    return scaling(case.scans[name].data, brain_mask(case).data > 0, kind="zscore")


def _median(found: Sequence[Scaling]) -> Scaling:
    offsets, scales = (torch.tensor([getattr(s, n) for s in found]) for n in ("offset", "scale"))
    return Scaling(float(offsets.median()), float(scales.median()))
