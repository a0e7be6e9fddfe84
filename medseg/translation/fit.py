"""Training a translator, with the one training loop."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from medseg.data.augment import AugmentSettings
from medseg.data.source import CaseSource, SubsetSource
from medseg.data.training_set import Batches, PatchSampler, TrainingCase
from medseg.errors import DataError
from medseg.preprocess.normalise import Scaling
from medseg.seeding import derive_seed, seeded_torch
from medseg.training.checkpoint import Checkpoints
from medseg.training.loop import train
from medseg.training.objective import Objective
from medseg.translation.adversary import PatchDiscriminator
from medseg.translation.cases import domain_cases, paired_cases, thin_cases
from medseg.translation.generator import CyclePair
from medseg.translation.model import Translator, build_network
from medseg.translation.objectives import CycleObjective, PairedObjective, ResolutionObjective
from medseg.translation.sampler import UnpairedSampler
from medseg.translation.settings import TranslationSettings

log = logging.getLogger(__name__)
_STATE = "checkpoint"


def train_translator(
    settings: TranslationSettings,
    source: CaseSource,
    other: CaseSource | None = None,
    *,
    folder: Path | None = None,
    resume: bool = True,
) -> Translator:
    """Return a translator trained on cases; with a folder it is saved there, and training resumes.

    Parameters
    ----------
    settings : TranslationSettings
    source : CaseSource
        Of pairs (``pix2pix``), of the first cohort (``cyclegan``), of thin slices
        (``super_resolution``).
    other : CaseSource, optional
        The second cohort of ``cyclegan``; by default ``source`` is cut in two by subject.
    folder : Path, optional
    resume : bool
        Go on from the state in the folder; a resumed training ends with the very same weights.

    Raises
    ------
    DataError
        No case, a case without one of the modalities, or a person in both cohorts.
    """
    if not len(source) or (other is not None and not len(other)):
        raise DataError("A translator is trained on at least one case, but there is none.")
    network = build_network(settings)
    batches, grey, cases = _batches(settings, source, other)
    checkpoints = None
    if folder is not None:
        key = _key(settings, cases)
        checkpoints = Checkpoints(folder=folder / _STATE, key=key, resume=resume)
    result = train(
        network,
        _objective(settings, network),
        batches,
        settings=settings.training,
        checkpoints=checkpoints,
    )
    translator = Translator(
        network.cpu().eval(),
        settings,
        grey,
        {"cases": cases, "steps": result.steps, "last": result.history[-1]},
    )
    if folder is not None:
        translator.save(folder)
    if checkpoints is not None:
        checkpoints.clear()
    return translator


def _batches(
    settings: TranslationSettings, source: CaseSource, other: CaseSource | None
) -> tuple[Batches, Scaling, list[str]]:
    """Return the batches, the grey values of what is made, and who was seen."""
    common: dict[str, Any] = {"reach": settings.neighbours, "preprocess": settings.preprocess}
    if settings.method == "super_resolution":
        thin = thin_cases(source, channels=settings.channels, axis=settings.axis, **common)
        return _sampler(settings, thin), Scaling(0.0, 1.0), _names(thin)
    target = str(settings.target)
    if settings.method == "pix2pix":
        pairs, grey = paired_cases(source, channels=settings.channels, target=target, **common)
        return _sampler(settings, pairs), grey, _names(pairs)
    first, second = (source, other) if other is not None else halves(source)
    there, _ = domain_cases(first, channels=settings.channels, **common)
    here, grey = domain_cases(second, channels=(target,), **common)
    both = UnpairedSampler(
        _sampler(settings, there),
        _sampler(settings, here, name="second"),
        subjects=(tuple(first.subjects), tuple(second.subjects)),
    )
    return both, grey, [*_names(there), *_names(here)]


def _sampler(
    settings: TranslationSettings, cases: list[TrainingCase], *, name: str = "first"
) -> PatchSampler:
    # Mirroring alone: what changes one image of a pair and not the other would be learned.
    augment = AugmentSettings(
        flip=settings.flip,
        flip_axes=(1,) if settings.method == "super_resolution" else (0,),
        affine=0.0,
        elastic=0.0,
        intensity=0.0,
        noise=0.0,
        bias=0.0,
        resolution=0.0,
    )
    seed = derive_seed(settings.seed, "translation batches", name)
    return PatchSampler(cases, patch=settings.patch, augment=augment, seed=seed)


def _objective(settings: TranslationSettings, network: nn.Module) -> Objective:
    size, widths = 2 * settings.neighbours + 1, settings.discriminator_widths
    inputs = len(settings.channels) * size
    if settings.method == "super_resolution":
        return ResolutionObjective(factor=settings.factor, reach=settings.neighbours)
    with seeded_torch(settings.seed, "discriminator"):
        if isinstance(network, CyclePair):
            both = nn.ModuleList(PatchDiscriminator(n, widths=widths) for n in network.channels)
            return CycleObjective(
                network,
                both,
                game=settings.game,
                weights=(
                    settings.adversarial_weight,
                    settings.cycle_weight,
                    settings.identity_weight,
                ),
            )
        looks = settings.adversarial_weight > 0
        return PairedObjective(
            PatchDiscriminator(inputs + 1, widths=widths) if looks else None,
            inputs=inputs,
            game=settings.game,
            weights=(settings.adversarial_weight, settings.l1_weight),
        )


def halves(source: CaseSource) -> tuple[CaseSource, CaseSource]:
    """Return the cases of every other subject, and of the others.

    Raises
    ------
    DataError
        There is only one subject.
    """
    order = {subject: place for place, subject in enumerate(dict.fromkeys(source.subjects))}
    if len(order) < 2:
        raise DataError(
            f"Learning without pairs needs two people at least, but {source.name} has one.",
            hint="Give a second cohort, or more subjects.",
        )
    parts = [
        [
            identifier
            for identifier, subject in zip(source.identifiers, source.subjects, strict=True)
            if order[subject] % 2 == half
        ]
        for half in (0, 1)
    ]
    first, second = (SubsetSource(source, part) for part in parts)
    return first, second


def _names(cases: list[TrainingCase]) -> list[str]:
    return [case.identifier for case in cases]


def _key(settings: TranslationSettings, cases: list[str]) -> str:
    # The device does not decide what is learned.
    plain = replace(settings, training=replace(settings.training, device="auto"))
    dumped = TypeAdapter(TranslationSettings).dump_python(plain, mode="json")
    text = json.dumps([dumped, cases], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
