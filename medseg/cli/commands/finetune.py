"""``medseg finetune``: a model for a target, from one to twenty scans."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medseg.experiment.plan import ExperimentPlan
    from medseg.inference.model import ModelSpec
    from medseg.training.method import MethodSettings

#: How scans are rehearsed where nothing else is said.
REHEARSAL = ("objective.share=0.75", "objective.looks=target")
#: What won on tumours with few masks (README, A sixth cohort): a light prior around the source, and
#: networks from the fine-tuned weights to the source's averaged.
ALL_THE_WAY = (
    "members=3",
    "wise_share=[0,0.25,0.5,0.75,1]",
    "elbo.beta=0.01",
    "variational.relative_std=0.02",
    "variational.max_relative_std=0.03",
)


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder of scans with masks; or the YAML of an experiment, or a shipped one's "
            "name: its target is trained on."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="auto (five variational networks, as near to the source as cases left out ask "
            "for), ri, pr, prf, l2sp, wise, resampled, mc_dropout, swag, gaussian, dwp or "
            "anchored. Left out: where the source predicts the target's regions three of "
            "gaussian, averaged over the way back to the source, if these lie in each other and "
            "no --scans and no --objective are given, else five of wise; auto where it does not."
        ),
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            help="Source model folder. With a folder of scans, architecture, channels and "
            "preprocessing are those of the source. Given again: its other members."
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(
            help="Filter prior of medseg fit-prior, which dwp and anchored need; anchored takes "
            "normalised kinds only: diagonal, gaussian, ppca, gmm, flow, vae, boovae, som."
        ),
    ] = None,
    kernels: Annotated[
        Path | None,
        typer.Option(
            help="Kernel set of medseg harvest, which method resampled and --set init=resampled "
            "need."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="What folders of scans hold, DATA and --scans: ms or brats; recognised if not "
            "given."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Method settings: key=value, or objective.key=value."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="What else is learned: privileged (--set objective.channels=[t1c]) beside all but "
            "variational methods; distillation of gaussian, dwp or anchored. With --scans also "
            "rehearsal, of any method but swag, and co_learning, hard_sharing, soft_sharing."
        ),
    ] = None,
    scans: Annotated[
        str,
        typer.Option(
            help="More scans to learn from: a name under scans in the YAML, a folder of scans with "
            "masks, or CONFIG:NAME, what an experiment's YAML calls NAME under sources or scans. "
            "Where no objective is named they are rehearsed: three of four steps see them, "
            "with intensities of the target's (objective.share=0.75, objective.looks=target). "
            "They must mark the target's regions then."
        ),
    ] = "",
    refine: Annotated[
        bool | None,
        typer.Option(
            help="Hold predictions against each scan's own intensities: a mixture of Gaussians "
            "with the network's probabilities as its prior (settings: --set refine.key=value). "
            "For regions that lie in each other; where there are several, so if not given.",
        ),
    ] = None,
    calibrate: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="FOLDS",
            help="Calibrate too: train so many models more, each without some subjects, and "
            "compare what they say of these with the masks. 0: not.",
        ),
    ] = 0,
    coverage: Annotated[
        float | None,
        typer.Option(help="What the calibration promises, 0.9 if not given; that takes 9 people."),
    ] = None,
    other_people: Annotated[
        bool,
        typer.Option(
            "--other-people",
            help="For --calibrate: subjects of the source or of --scans that share their names "
            "with the target's are others.",
        ),
    ] = False,
) -> None:
    """Fine-tune on every case of the target and save the model."""
    from functools import partial

    from medseg.calibration.settings import CalibrationSettings
    from medseg.cli.session import begin, log, tell_people
    from medseg.config.build import load_arm
    from medseg.config.folder import plan_for
    from medseg.config.scans import with_scans
    from medseg.experiment.crossfit import finetune_calibrated
    from medseg.experiment.record import plan_key
    from medseg.experiment.single import finetune_target, source_from
    from medseg.inference.model import load_model

    _check_calibration(calibrate, coverage, other_people)
    _check_out(out, source or ())
    models = [load_model(folder, ignore_calibration=True) for folder in source or ()]
    spec = models[0].spec if models else None
    command = f"medseg finetune {data}"
    _check_scans(method, objective, scans)
    plan = plan_for(data, overrides or (), kind=kind, source=spec, command=command)
    plan = with_scans(plan, scans, kind=kind)
    tissues = _shows_tissues(plan)
    alone = tissues and not scans and objective is None
    name, given = (method, ()) if method else _usual(spec, plan, compared=alone)
    if name == "auto":
        given = ("members=5",)
    if scans and objective is None:
        given, objective = (*given, *REHEARSAL), "rehearsal"
    refines = tissues if refine is None else refine
    arm = load_arm(
        name, [*given, *(options or ())], objective=objective, scans=scans, refine=refines
    )
    _check_needs(arm.method, source=source, prior=prior, kernels=kernels)
    _check_channels(plan, spec)
    begin(out)
    log.info("method %s", arm.label)
    tell_people(plan.title, plan.target.source)
    loaded = source_from(*models, prior=prior, kernels=kernels) if models else None
    train = finetune_target
    if calibrate:
        asked = (
            CalibrationSettings() if coverage is None else CalibrationSettings(coverage=coverage)
        )
        train = partial(
            finetune_calibrated, folds=calibrate, settings=asked, other_people=other_people
        )
    train(
        plan,
        arm.method,
        source=loaded,
        out=out,
        key=plan_key(plan),
        objective=arm.objective,
        scans=scans,
        refine=arm.refine,
    )
    typer.echo(str(out))


def _shows_tissues(plan: "ExperimentPlan") -> bool:
    """Return whether the target's regions are several that lie in each other, as in tumours.

    That is where refinement was compared (README); of one kind of lesion nothing is known.
    """
    from medseg.errors import ConfigError
    from medseg.inference.intensity_prior import nested

    protocol, definition = plan.protocol, plan.target.definition
    names = protocol.regions.names
    if protocol.regions.mode != "regions" or protocol.preprocess.normalise != "zscore":
        return False
    try:
        return len(nested({name: definition[name] for name in names})) > 1
    except ConfigError:
        return False


def _usual(
    spec: "ModelSpec | None", plan: "ExperimentPlan", *, compared: bool
) -> tuple[str, tuple[str, ...]]:
    """Return the method that is taken where none is named, and its settings.

    A fresh head has nothing to go back to: there ``auto`` asks how far. What won was ``compared``
    on nested regions, and with nothing learned beside (README).
    """
    wanted = plan.protocol.regions
    known = () if spec is None or spec.regions.mode != wanted.mode else spec.regions.names
    if not set(wanted.names) <= set(known):
        return "auto", ()
    return ("gaussian", ALL_THE_WAY) if compared else ("wise", ("members=5",))


def _check_scans(method: str | None, objective: str | None, scans: str) -> None:
    from medseg.errors import ConfigError
    from medseg.training.objectives import WITH_SCANS

    kinds = [one.kind for one in WITH_SCANS]
    if scans and (objective or "rehearsal") not in kinds:
        raise ConfigError(
            f"Scans beside the target's are for the objectives {', '.join(kinds)}, but "
            f"--scans is given and the objective is {objective}.",
            hint="Leave --scans out, or take one of these.",
        )
    if scans and method == "swag":
        raise ConfigError(
            "Scans beside the target's are for all methods but swag, but --scans is given.",
            hint="Leave --scans out, or take another method.",
        )


def _check_calibration(folds: int, coverage: float | None, other_people: bool) -> None:
    from medseg.calibration.conformal import check_coverage
    from medseg.errors import ConfigError

    if coverage is not None:
        check_coverage(coverage)
    given = {"--coverage": coverage is not None, "--other-people": other_people}
    ignored = [name for name, is_given in given.items() if is_given]
    if ignored and not folds:
        raise ConfigError(
            f"{' and '.join(ignored)} belong to a calibration, but --calibrate is not given.",
            hint="Add --calibrate 5, or leave them out.",
        )


def _check_out(out: Path, sources: Sequence[Path]) -> None:
    from medseg.errors import ConfigError
    from medseg.inference.model import SPEC_NAME, WEIGHTS_NAME

    for folder, name in product(sources, (WEIGHTS_NAME, SPEC_NAME)):
        ours, given = out / name, folder / name
        # Links to one file count as that file.
        if ours.exists() and given.exists() and ours.samefile(given):
            raise ConfigError(
                f"A source is never written over, but --out {out} is a --source or holds files of "
                "it.",
                hint="Give another folder to --out.",
            )


def _check_channels(plan: "ExperimentPlan", source: "ModelSpec | None") -> None:
    from medseg.errors import ConfigError

    wanted = plan.protocol.channels
    if source is not None and source.channels != wanted:
        raise ConfigError(
            f"A source has the channels of the target, in their order, but it has "
            f"{', '.join(source.channels)} and protocol.channels is {', '.join(wanted)}.",
            hint=f"Set protocol.channels=[{','.join(source.channels)}], or take another source.",
        )


def _check_needs(
    chosen: "MethodSettings",
    *,
    source: list[Path] | None,
    prior: Path | None,
    kernels: Path | None,
) -> None:
    from medseg.errors import ConfigError
    from medseg.training.method import WITH_PRIOR

    method = chosen.method
    if method != "ri" and not source:
        raise ConfigError(
            f"--method {method} transfers from a source model, but --source is not given.",
            hint="Train one with `medseg train`, or take --method ri.",
        )
    if method not in WITH_PRIOR and prior is not None:
        raise ConfigError(
            f"--prior belongs to the methods {' and '.join(WITH_PRIOR)}, but --method is {method}.",
            hint="Leave --prior out, or take --method dwp.",
        )
    if method in WITH_PRIOR and prior is None:
        raise ConfigError(
            f"--method {method} needs a filter prior, but --prior is not given.",
            hint="Make one with `medseg harvest` and `medseg fit-prior`.",
        )
    if "resampled" in (method, chosen.init) and kernels is None:
        raise ConfigError(
            f"--method {method} starts from source kernels drawn at random, but --kernels is not "
            "given.",
            hint="Make a kernel set with `medseg harvest`.",
        )
