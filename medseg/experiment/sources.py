"""From source cohorts to source networks, their kernels and the priors fitted to them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from medseg.data.regions import RegionSettings
from medseg.data.splits import bootstrap_subjects, split_by_subject
from medseg.data.training_set import TrainingCase, cases_sha256, make_training_case
from medseg.errors import ConfigError
from medseg.experiment.cohort_check import refuse_own_people, refuse_same_masks
from medseg.experiment.plan import Cohort, ExperimentPlan, source_regions
from medseg.inference.intensity_prior import (
    IntensityPrior,
    RefinementSettings,
    fit_intensity_prior,
)
from medseg.inference.model import Model, ModelSpec, load_model, seen_subjects
from medseg.inference.people import hidden_names
from medseg.inference.posterior import Head
from medseg.inference.provenance import versions
from medseg.io.atomic import atomic_path, write_table
from medseg.preprocess.prepare import prepare
from medseg.priors.compare import compare_priors
from medseg.priors.fit import fit_priors
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.seeding import derive_seed, torch_generator
from medseg.training.checkpoint import Checkpoints
from medseg.training.learn import pretrain
from medseg.training.method import WITH_PRIOR
from medseg.training.objectives import MoreScans, pretext_regions
from medseg.training.transfer import Source, TrainingPlan, train_from_scratch
from medseg.training.validation import mean_dice_of

log = logging.getLogger(__name__)
_MONTAGE = 48


def training_cases(
    cohort: Cohort,
    plan: ExperimentPlan,
    *,
    regions: RegionSettings,
    allow_missing: bool,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> list[TrainingCase]:
    """Return the cases of a cohort, prepared and encoded: of all subjects, of some or without."""
    protocol = plan.protocol
    cases = []
    for index, subject in enumerate(cohort.source.subjects):
        if subject in without or (only is not None and subject not in only):
            continue
        prepared = prepare(
            cohort.source[index],
            channels=protocol.channels,
            settings=protocol.preprocess,
            allow_missing=allow_missing,
        )
        cases.append(make_training_case(prepared, regions=regions, definition=cohort.definition))
    log.info("prepared %d cases of %s", len(cases), cohort.source.name)
    return cases


def intensities_of(
    cases: Sequence[TrainingCase], plan: ExperimentPlan, refine: RefinementSettings
) -> IntensityPrior:
    """Return how the tissues of the target's training cases look.

    Raises
    ------
    ConfigError
        Intensities are no z-scores, or the regions do not lie in each other.
    DataError
        The cases show too little.
    """
    protocol = plan.protocol
    if protocol.preprocess.normalise != "zscore":
        raise ConfigError(
            "Refinement by intensities is for z-scores, but protocol.preprocess.normalise is "
            f"{protocol.preprocess.normalise!r}.",
            hint="Leave the refinement out, or normalise by zscore.",
        )
    names, definition = protocol.regions.names, plan.target.definition
    return fit_intensity_prior(cases, names, definition, chosen=refine, seed=protocol.seed)


def more_scans(plan: ExperimentPlan, name: str, *, labelled: bool) -> MoreScans:
    """Return the scans that an objective learns from beside the target's.

    Parameters
    ----------
    plan : ExperimentPlan
    name : str
        One of ``plan.scans``.
    labelled : bool
        Read their masks; else they need not have any.

    Raises
    ------
    ConfigError
        Masks of the target's own people would be read: some of them are tested on.
    """
    cohorts, wanted = plan.scans[name], plan.protocol.regions
    held = frozenset[str]().union(*(held_out_subjects(plan, source) for source in plan.sources))
    if not labelled:
        return MoreScans(unlabelled_cases(cohorts, plan, regions=wanted, without=held), wanted)
    refuse_own_people(cohorts, plan, where=f"scans.{name}")
    regions = source_regions([plan.target, *cohorts], wanted)
    cases = [
        case
        for cohort in cohorts
        for case in training_cases(cohort, plan, regions=regions, allow_missing=True, without=held)
    ]
    return MoreScans(cases, regions)


def unlabelled_cases(
    cohorts: Sequence[Cohort],
    plan: ExperimentPlan,
    *,
    regions: RegionSettings,
    without: Collection[str] = (),
) -> list[TrainingCase]:
    """Return the cases of some cohorts, prepared, with no region known; masks are not looked at.

    Subjects in ``without`` are left out.
    """
    protocol, cases = plan.protocol, []
    for source in (cohort.source for cohort in cohorts):
        for index in (i for i, who in enumerate(source.subjects) if who not in without):
            prepared = prepare(
                source[index],
                channels=protocol.channels,
                settings=protocol.preprocess,
                allow_missing=True,
            )
            shape = (regions.channels, *prepared.brain.shape)
            case = TrainingCase(
                identifier=prepared.identifier,
                subject=prepared.subject,
                image=prepared.image,
                present=prepared.present,
                target=torch.zeros(shape),
                known=torch.zeros(regions.channels, dtype=torch.bool),
                brain=prepared.brain,
                has_background=regions.mode == "classes",
            )
            cases.append(case)
    return cases


def train_members(
    plan: ExperimentPlan,
    name: str,
    out: Path,
    *,
    key: str,
    target: Sequence[TrainingCase] = (),
) -> list[Path]:
    """Train the members of source ``name`` that are not there yet; return all their folders.

    Raises
    ------
    DataError
        A mask of the source is that of a case of ``target``.
    """
    cohorts, pretext = plan.sources[name], plan.pretraining.get(name)
    regions = regions_of(plan, name)
    folders = [out / "sources" / name / f"member_{m}" for m in range(plan.protocol.members)]
    missing = [m for m, folder in enumerate(folders) if not (folder / "model.json").is_file()]
    if missing and pretext is not None:
        cases = unlabelled_cases(cohorts, plan, regions=regions)
    elif missing:
        held = held_out_subjects(plan, name)
        cases = [
            case
            for cohort in cohorts
            for case in training_cases(
                cohort, plan, regions=regions, allow_missing=True, without=held
            )
        ]
        wanted = plan.protocol.regions
        refuse_same_masks(cases, regions, target, wanted, where=f"sources.{name}")
    if missing:
        for member in missing:
            _train_member(plan, name, cases, member=member, out=out, key=key)
    return folders


def shared_regions(cohort: Cohort, plan: ExperimentPlan) -> tuple[str, ...]:
    """Return the target's regions that a data set of a source marks, too."""
    return tuple(name for name in plan.protocol.regions.names if name in cohort.definition)


def held_out_subjects(plan: ExperimentPlan, name: str) -> frozenset[str]:
    """Return the subjects that no member of source ``name`` is trained on.

    ``protocol.forgetting`` of each data set of the source that shares a region with the target, the
    first by a hash of seed and name: the same ones for every member, shard and resumed run.

    Raises
    ------
    DataError
        A data set is too small to give so many.
    """
    n = plan.protocol.forgetting
    if n == 0 or name in plan.pretraining:
        return frozenset()
    held: set[str] = set()
    for cohort in plan.sources[name]:
        if shared_regions(cohort, plan):
            split = split_by_subject(
                cohort.source, seed=plan.protocol.seed, sizes={"held": n}, rest="train"
            )
            held |= set(split.subjects_of("held"))
    return frozenset(held)


def regions_of(plan: ExperimentPlan, name: str) -> RegionSettings:
    """Return what the networks of a source predict."""
    pretext = plan.pretraining.get(name)
    if pretext is not None:
        return pretext_regions(pretext, plan.protocol.channels)
    return source_regions(plan.sources[name], plan.protocol.regions)


def make_source(
    plan: ExperimentPlan,
    name: str,
    out: Path,
    *,
    key: str,
    target: Sequence[TrainingCase] = (),
) -> Source:
    """Train or load the members of source ``name``, harvest them and fit the priors.

    The prior is fitted where an arm on this source asks for one. What is there already, written
    under the same ``key``, is not made again.

    Raises
    ------
    DataError
        A mask of the source is that of a case of ``target``.
    """
    folders = train_members(plan, name, out, key=key, target=target)
    models = [load_model(folder, ignore_calibration=True) for folder in folders]
    networks = [model.network for model in models]
    kernels = harvest(networks, settings=plan.protocol.harvest)
    # Fitting and comparing priors takes minutes, which an experiment without them need not wait.
    asked = any(arm.method.method in WITH_PRIOR and name in arm.sources for arm in plan.arms)
    priors = _fit(plan, name, kernels, out / "priors" / name) if asked else {}
    return Source(
        network=networks[0],
        networks=networks,
        regions=regions_of(plan, name),
        kernels=kernels,
        priors=priors.get(None),
        named_priors={prior: fitted for prior, fitted in priors.items() if prior is not None},
        subjects=frozenset[str]().union(*(seen_subjects(model.spec) for model in models)),
    )


def _train_member(
    plan: ExperimentPlan,
    name: str,
    cases: Sequence[TrainingCase],
    *,
    member: int,
    out: Path,
    key: str,
) -> None:
    protocol, pretext = plan.protocol, plan.pretraining.get(name)
    regions = regions_of(plan, name)
    drawn = bootstrap_subjects([c.subject for c in cases], seed=protocol.seed, member=member)
    chosen = [case for subject in drawn for case in cases if case.subject == subject]
    # A bootstrap leaves about a third of the subjects out: they serve for early stopping.
    left_out = [case for case in cases if case.subject not in drawn]
    architecture = plan.architecture(len(protocol.channels), regions.channels)
    log.info("source %s, member %d: training on %d cases", name, member, len(chosen))
    training = TrainingPlan(
        architecture=architecture,
        regions=regions,
        patch=protocol.patch,
        augment=replace(protocol.augment, modality_dropout=protocol.source_modality_dropout),
        loss=protocol.loss,
        training=protocol.source_training,
        seed=derive_seed(protocol.seed, "source", name, member),
        channels=protocol.channels,
        spacing_mm=protocol.preprocess.spacing_mm or (1.0, 1.0, 1.0),
    )
    folder = out / "sources" / name / f"member_{member}"
    checkpoints = Checkpoints(folder=folder / "state", key=key)
    head = Head(regions, architecture.dims, window=protocol.patch.size)
    if pretext is not None:
        network, result = pretrain(chosen, training, pretext, checkpoints=checkpoints)
    else:
        network, result = train_from_scratch(
            chosen,
            training,
            checkpoints=checkpoints,
            validate=mean_dice_of(left_out, head=head) if left_out else None,
        )
    write_table(out / "histories" / f"source_{name}_member{member}.tsv", result.history)
    definition: dict[str, tuple[int, ...]] = dict.fromkeys(regions.names, ())
    definition |= {
        region: tuple(cohort.definition[region])
        for cohort in plan.sources[name]
        for region in regions.names
        if region in cohort.definition
    }
    people = f"{key}-{training.seed}-{cases_sha256(cases)}"
    spec = ModelSpec(
        architecture=architecture,
        channels=protocol.channels,
        regions=regions,
        region_definition=definition,
        preprocess=protocol.preprocess,
        allow_missing=True,
        patch=protocol.patch.size,
        method="source" if pretext is None else pretext.kind,
        training={
            "subjects": hidden_names(drawn, key=people),
            # Early stopping looked at the rest: no word on them would be one on new people.
            "seen_subjects": hidden_names({case.subject for case in cases}, key=people),
            "seed": training.seed,
            "versions": versions(),
        },
    )
    Model(network, spec).save(folder)
    checkpoints.clear()


def _fit(
    plan: ExperimentPlan, name: str, kernels: KernelSet, folder: Path
) -> dict[str | None, LayerPriors]:
    """Fit every prior that is wanted of a source, and compare them on unseen kernels."""
    seed = derive_seed(plan.protocol.seed, "prior", name)
    wanted = {prior: plan.protocol.prior_named(prior) for prior in plan.priors_of(name)}
    folders = {prior: folder / ("prior" if prior is None else f"prior_{prior}") for prior in wanted}
    if (folder / "held_out.tsv").is_file():
        return {prior: LayerPriors.load(path) for prior, path in folders.items()}
    log.info("source %s: fitting filter priors to %d kernels", name, len(kernels))
    priors: dict[str | None, LayerPriors] = {}
    for prior, settings in wanted.items():
        priors[prior] = fit_priors(kernels, settings, seed=seed)
        priors[prior].save(folders[prior])
    _save_montage(kernels, priors, plan, folder / "kernels.safetensors")
    named = {prior: settings for prior, settings in wanted.items() if prior is not None}
    rows = (
        compare_priors(kernels, settings=named, seed=seed, two_sample=plan.protocol.two_sample)
        if named
        else compare_priors(kernels, seed=seed)
    )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_table(folder / "held_out.tsv", rows, columns=columns)
    return priors


def _save_montage(
    kernels: KernelSet,
    priors: Mapping[str | None, LayerPriors],
    plan: ExperimentPlan,
    path: Path,
) -> None:
    """Keep some real and some sampled kernels of the middle layer, for the report."""
    layer = kernels.layer_names[len(kernels.layer_names) // 2]
    generator = torch_generator(plan.protocol.seed, "montage")
    tensors = {"real": kernels.resample(layer, _MONTAGE, generator=generator).contiguous()}
    for name, prior in priors.items():
        settings = plan.protocol.prior_named(name)
        label = f"sampled_{name or settings.kind}_{settings.grouping}"
        tensors[label] = prior.sample(layer, _MONTAGE, generator=generator).detach().contiguous()
    with atomic_path(path) as temporary, torch.no_grad():
        save_file(tensors, temporary)
