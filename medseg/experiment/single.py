"""One model for a target, outside any grid: what a hospital does with its few labelled scans."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medseg.data.training_set import TrainingCase, cases_sha256
from medseg.errors import ConfigError, DataError
from medseg.experiment.plan import Arm, ExperimentPlan
from medseg.experiment.sources import intensities_of, more_scans, training_cases
from medseg.inference.ensemble import joined, members_of
from medseg.inference.intensity_prior import IntensityPrior, RefinementSettings
from medseg.inference.model import (
    SPEC_NAME,
    Model,
    ModelSpec,
    load_model,
    seen_subjects,
    spec_to_json,
)
from medseg.inference.people import hidden_names
from medseg.inference.provenance import versions
from medseg.io.atomic import write_table
from medseg.networks.unet import UNetSettings
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.training.checkpoint import Checkpoints
from medseg.training.choice import Choice, chosen_method
from medseg.training.learn import learn
from medseg.training.loop import TrainingResult
from medseg.training.method import WITH_PRIOR
from medseg.training.objectives import ObjectiveSettings
from medseg.training.transfer import VARIATIONAL, MethodSettings, Source, TrainingPlan

log = logging.getLogger(__name__)


def load_source_model(
    folder: Path, *, prior: Path | None = None, kernels: Path | None = None
) -> Source:
    """Return the source model in a folder with its filter prior and kernels, where given."""
    model = load_model(folder, ignore_calibration=True)
    return source_from(model, prior=prior, kernels=kernels)


def source_from(*models: Model, prior: Path | None = None, kernels: Path | None = None) -> Source:
    """Return models as the members of a source, with its filter prior and kernels, where given.

    A training starts from the first; an ensemble counts as its members.

    Raises
    ------
    ConfigError
        Two models take other channels, are prepared otherwise, predict other regions or have
        another architecture.
    """
    for model in models[1:]:
        _check_alike(models[0], model)
    networks = [member for model in models for member in members_of(model.network)]
    return Source(
        network=networks[0],
        networks=networks,
        regions=models[0].spec.regions,
        kernels=None if kernels is None else KernelSet.load(kernels),
        priors=None if prior is None else LayerPriors.load(prior),
        subjects=frozenset[str]().union(*(seen_subjects(model.spec) for model in models)),
    )


def _check_alike(first: Model, other: Model) -> None:
    ours, theirs = (spec_to_json(model.spec) for model in (first, other))
    faults: list[str] = []
    for part in ("channels", "regions", "preprocess", "architecture"):
        one, two = ours[part], theirs[part]
        if isinstance(one, dict):
            keys = [key for key in one if one[key] != two[key]]
            faults += [f"{part}.{key} {one[key]} and {two[key]}" for key in keys]
        elif one != two:
            faults.append(f"{part} {one} and {two}")
    if faults:
        raise ConfigError(
            f"Members of one source agree in channels, regions, preprocessing and architecture, "
            f"but {first.folder} and {other.folder} have {'; '.join(faults)}.",
            hint="Give the members of one source only, as `medseg train` wrote them.",
        )


def seen_beside(plan: ExperimentPlan, scans: str, source: Source | None) -> frozenset[str]:
    """Return the subjects that a training sees besides the target's.

    Those of its source, by name or as salted hashes, and of more scans that it learns from or
    rehearses.
    """
    more = (cohort.source.subjects for cohort in plan.scans.get(scans, ()))
    return frozenset[str]().union(() if source is None else source.subjects, *more)


def fingerprint(source: Source | None) -> str:
    """Return the hash of the weights, prior and kernels that a training starts from."""
    if source is None:
        return "none"
    digest = hashlib.sha256()
    for network in source.networks or (source.network,):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    parts = [part.hash for part in (source.priors, source.kernels) if part is not None]
    return "-".join([digest.hexdigest(), *parts])


def finetune_target(
    plan: ExperimentPlan,
    method: MethodSettings,
    *,
    source: Source | None,
    out: Path,
    key: str,
    objective: ObjectiveSettings | None = None,
    scans: str = "",
    refine: RefinementSettings | None = None,
    replaces: bool = False,
) -> Model:
    """Train on every case of the plan's target by one method and save the model in ``out``.

    An interrupted training goes on where it stopped when it is started again, or starts anew where
    scans or masks changed; a finished one is not done again, and with ``replaces`` only where they
    changed. With privileged channels the model takes scans without them; a distilled one tells its
    own uncertainty. With ``refine`` it remembers what these cases look like, and holds its
    predictions against each scan's own intensities; where the cases show too little, it does not,
    with a warning.

    Raises
    ------
    ConfigError
        There is a model of another training in ``out``.
    TrainingError
        The objective learns from more scans, but ``scans`` is not among those of the plan.
    """
    arm = Arm(method=method, objective=objective, scans=scans, refine=refine)
    more = more_scans(plan, scans, labelled=arm.more[1]) if scans in plan.scans else None
    protocol = plan.protocol
    cases = training_cases(plan.target, plan, regions=protocol.regions, allow_missing=False)
    architecture = plan.architecture(len(protocol.channels), protocol.regions.channels)
    training, origin = _training_plan(plan, architecture), fingerprint(source)
    chosen = method if objective is None else (method, objective, scans)
    key = f"{key}-{chosen}-{origin}"
    identity = hashlib.sha256(f"{key}-{refine}".encode()).hexdigest()
    data = cases_sha256([*cases, *(() if more is None else more.cases)])
    there = _made_before(out, identity, data, replaces=replaces)
    if there is not None:
        return there
    checkpoints = Checkpoints(folder=out / "state", key=key, data=data)
    looks = _looks(cases, plan, refine)
    choice = chosen_method(
        cases,
        training,
        method,
        objective,
        source=source,
        more=more,
        channels=protocol.channels,
        checkpoints=checkpoints,
    )
    networks, results = zip(
        *(
            learn(
                cases,
                training.member(member),
                choice.method,
                objective,
                source=None if source is None else source.member(member),
                more=more,
                channels=protocol.channels,
                checkpoints=_of_member(checkpoints, member),
            )
            for member in range(method.members)
        ),
        strict=True,
    )
    people, used = {case.subject for case in cases}, replace(arm, method=choice.method)
    beside = seen_beside(plan, scans, source)
    record = _record(used, source, people, beside, key=f"{identity}-{data}") | {
        "source": origin,
        "identity": identity,
        "data_sha256": data,
        "seed": protocol.seed,
        "steps": results[0].steps,
    }
    spec = _spec(plan, arm, architecture, record)
    spec = replace(spec, temperature=choice.temperature, intensities=looks)
    model = Model(joined(networks), spec)
    model.save(out)
    _write_histories(out, choice, results, checkpoints)
    return model


def _record(
    arm: Arm, source: Source | None, people: Collection[str], beside: Collection[str], *, key: str
) -> dict[str, Any]:
    """Return what tells a model from another of the same label, and whom its training saw."""
    plain = TypeAdapter(Arm).dump_python(arm, mode="json")
    prior = source.priors.hash if source is not None and source.priors is not None else None
    return {
        **{part: plain[part] for part in ("method", "objective", "scans", "refine")},
        "subjects": hidden_names(people, key=key),
        "seen_subjects": hidden_names({*people, *beside}, key=key),
        "prior_hash": prior if arm.method.method in WITH_PRIOR else None,
        "versions": versions(),
    }


def _made_before(out: Path, identity: str, data: str, *, replaces: bool) -> Model | None:
    """Return the model of this training where it is there already, None where there is none.

    One of the same settings but other data goes where it may be replaced.
    """
    if not (out / SPEC_NAME).is_file():
        return None
    there = load_model(out, ignore_calibration=True)
    is_alike = there.spec.training.get("identity") == identity
    if is_alike and there.spec.training.get("data_sha256") == data:
        log.info("done already: %s holds the model of this training", out)
        return there
    if is_alike and replaces:
        log.warning("scans or masks changed since %s was trained: it is trained anew", out)
        (out / SPEC_NAME).unlink()
        return None
    raise ConfigError(
        f"A finished model is not written over, but {out} holds one that was trained "
        + ("on other scans or masks." if is_alike else "by other settings or from another source."),
        hint="Give another folder, or delete this one if nobody needs it.",
    )


def _looks(
    cases: Sequence[TrainingCase], plan: ExperimentPlan, refine: RefinementSettings | None
) -> IntensityPrior | None:
    """Return how the cases look, None where that is not asked for or cannot be told."""
    if refine is None:
        return None
    try:
        return intensities_of(cases, plan, refine)
    except DataError as error:
        log.warning("predictions are not refined: %s", error)
        return None


def _write_histories(
    out: Path, choice: Choice, results: Sequence[TrainingResult], checkpoints: Checkpoints
) -> None:
    """Write what was chosen and how the members were trained; their states are done with."""
    if choice.rows:
        write_table(out / "choice.tsv", choice.rows)
    for member, result in enumerate(results):
        name = f"history_member{member}.tsv" if member else "history.tsv"
        write_table(out / name, result.history)
        _of_member(checkpoints, member).clear()


def _training_plan(plan: ExperimentPlan, architecture: UNetSettings) -> TrainingPlan:
    protocol = plan.protocol
    return TrainingPlan(
        architecture=architecture,
        regions=protocol.regions,
        patch=protocol.patch,
        augment=protocol.augment,
        loss=protocol.loss,
        training=protocol.target_training,
        seed=protocol.seed,
        channels=protocol.channels,
        spacing_mm=protocol.preprocess.spacing_mm or (1.0, 1.0, 1.0),
    )


def _spec(
    plan: ExperimentPlan, arm: Arm, architecture: UNetSettings, record: dict[str, Any]
) -> ModelSpec:
    """Return the description of what an arm makes of networks of ``architecture``."""
    protocol, method = plan.protocol, arm.method
    architecture = method.architecture(architecture)
    if arm.distils:
        architecture = replace(architecture, out_channels=2 * architecture.out_channels)
    random = method.method in VARIATIONAL and not arm.distils
    return ModelSpec(
        architecture=architecture,
        channels=protocol.channels,
        regions=protocol.regions,
        region_definition={
            name: tuple(plan.target.definition[name]) for name in protocol.regions.names
        },
        preprocess=protocol.preprocess,
        allow_missing=bool(arm.hidden_channels),
        variational=method.variational if random else None,
        swag_rank=method.swag_rank if method.method == "swag" else 0,
        members=method.networks,
        has_share=arm.distils,
        patch=protocol.patch.size,
        method=replace(arm, refine=None).label,
        training=record,
    )


def _of_member(checkpoints: Checkpoints, member: int) -> Checkpoints:
    if member == 0:
        return checkpoints
    folder = checkpoints.folder.with_name(f"{checkpoints.folder.name}_member{member}")
    return replace(checkpoints, folder=folder)
