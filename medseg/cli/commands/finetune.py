"""``medseg finetune``: a model for a target, from one to twenty scans."""

from pathlib import Path
from typing import Annotated

import typer


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
        str,
        typer.Option(
            help="ri, pr, prf, l2sp, wise, resampled, mc_dropout, swag, gaussian, dwp or anchored."
        ),
    ] = "dwp",
    source: Annotated[
        list[Path] | None,
        typer.Option(
            help="Source model folder. With a folder of scans, architecture, channels and "
            "preprocessing are those of the source. Given again: its other members."
        ),
    ] = None,
    prior: Annotated[Path | None, typer.Option(help="Filter prior, for dwp.")] = None,
    kernels: Annotated[Path | None, typer.Option(help="Kernel set, for init=resampled.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="What a folder of scans holds: ms or brats; recognised if not given."),
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
            help="What else is learned: privileged, distillation; with --scans also co_learning, "
            "hard_sharing, soft_sharing."
        ),
    ] = None,
    scans: Annotated[
        str, typer.Option(help="More scans to learn from: a name under scans in the YAML.")
    ] = "",
) -> None:
    """Fine-tune on every case of the target and save the model."""
    from medseg.cli.session import begin, log
    from medseg.config.build import load_arm, load_plan
    from medseg.config.folder import plan_for_folder
    from medseg.errors import ConfigError
    from medseg.experiment.run import plan_key
    from medseg.experiment.single import finetune_target, source_from
    from medseg.inference.model import load_model

    arm = load_arm(method, options or (), objective=objective, scans=scans)
    chosen = arm.method
    _check_needs(chosen.method, source=source, prior=prior)
    models = [load_model(folder) for folder in source or ()]
    model = models[0] if models else None
    command = f"medseg finetune {data}"
    if Path(data).is_dir():
        spec = None if model is None else model.spec
        plan = plan_for_folder(Path(data), overrides or (), kind=kind, source=spec, command=command)
    elif kind is not None:
        raise ConfigError(
            f"--kind says what a folder of scans holds, but {data!r} is no folder.",
            hint="Give the folder, or leave --kind out.",
        )
    else:
        plan = load_plan(data, overrides or (), command=command)
    begin(out)
    log.info("%s: %d cases (%s)", plan.title, len(plan.target.source), plan.target.source.name)
    loaded = None if model is None else source_from(*models, prior=prior, kernels=kernels)
    finetune_target(
        plan,
        chosen,
        source=loaded,
        out=out,
        key=plan_key(plan),
        objective=arm.objective,
        scans=scans,
    )
    typer.echo(str(out))


def _check_needs(method: str, *, source: list[Path] | None, prior: Path | None) -> None:
    from medseg.errors import ConfigError

    if method != "ri" and not source:
        raise ConfigError(
            f"--method {method} transfers from a source model, but --source is not given.",
            hint="Train one with `medseg train`, or take --method ri.",
        )
    if method in ("dwp", "anchored") and prior is None:
        raise ConfigError(
            f"--method {method} needs a filter prior, but --prior is not given.",
            hint="Make one with `medseg harvest` and `medseg fit-prior`.",
        )
