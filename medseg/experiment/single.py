"""One model for a target, outside any grid: what a hospital does with its few labelled scans."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from medseg.experiment.plan import Arm, ExperimentPlan
from medseg.experiment.sources import more_scans, training_cases
from medseg.inference.model import Model, ModelSpec, load_model
from medseg.inference.provenance import versions
from medseg.io.atomic import write_table
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.training.checkpoint import Checkpoints
from medseg.training.learn import learn
from medseg.training.objectives import ObjectiveSettings
from medseg.training.transfer import VARIATIONAL, MethodSettings, Source, TrainingPlan


def load_source_model(
    folder: Path, *, prior: Path | None = None, kernels: Path | None = None
) -> Source:
    """Return the source model in a folder with its filter prior and kernels, where given."""
    return source_from(load_model(folder), prior=prior, kernels=kernels)


def source_from(model: Model, *, prior: Path | None = None, kernels: Path | None = None) -> Source:
    """Return a model as a source, with its filter prior and kernels, where they are given."""
    return Source(
        network=model.network,
        regions=model.spec.regions,
        kernels=None if kernels is None else KernelSet.load(kernels),
        priors=None if prior is None else LayerPriors.load(prior),
    )


def _fingerprint(source: Source | None) -> str:
    """Return the hash of the weights, prior and kernels that a training starts from."""
    if source is None:
        return "none"
    digest = hashlib.sha256()
    for name, value in sorted(source.network.state_dict().items()):
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
) -> Model:
    """Train on every case of the plan's target by one method and save the model in ``out``.

    An interrupted training goes on where it stopped when it is started again. With privileged
    channels the model takes scans without them; a distilled one tells its own uncertainty.

    Raises
    ------
    TrainingError
        The objective learns from more scans, but ``scans`` is not among those of the plan.
    """
    arm = Arm(method=method, objective=objective, scans=scans)
    more = more_scans(plan, scans, labelled=arm.more[1]) if scans in plan.scans else None
    protocol = plan.protocol
    cases = training_cases(plan.target, plan, regions=protocol.regions, allow_missing=False)
    architecture = plan.architecture(len(protocol.channels), protocol.regions.channels)
    training = TrainingPlan(
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
    chosen = method if objective is None else (method, objective, scans)
    checkpoints = Checkpoints(folder=out / "state", key=f"{key}-{chosen}-{_fingerprint(source)}")
    network, result = learn(
        cases,
        training,
        method,
        objective,
        source=source,
        more=more,
        channels=protocol.channels,
        checkpoints=checkpoints,
    )
    definition = {name: tuple(plan.target.definition[name]) for name in protocol.regions.names}
    prior = source.priors.hash if source is not None and source.priors is not None else None
    spec = ModelSpec(
        architecture=replace(architecture, out_channels=2 * architecture.out_channels)
        if arm.distils
        else architecture,
        channels=protocol.channels,
        regions=protocol.regions,
        region_definition=definition,
        preprocess=protocol.preprocess,
        allow_missing=bool(arm.hidden_channels),
        variational=None if arm.distils or method.method not in VARIATIONAL else method.variational,
        has_share=arm.distils,
        method=arm.label,
        training={
            "subjects": sorted({case.subject for case in cases}),
            "seed": protocol.seed,
            "steps": result.steps,
            "prior_hash": prior if method.method == "dwp" else None,
            "versions": versions(),
        },
    )
    model = Model(network, spec)
    model.save(out)
    write_table(out / "history.tsv", result.history)
    checkpoints.clear()
    return model
