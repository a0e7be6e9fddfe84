"""``medseg finetune``: a model for a target, from one to twenty scans."""

from pathlib import Path
from typing import Annotated

import typer


def finetune(
    config: Annotated[str, typer.Argument(help="YAML of an experiment: its target is trained on.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    method: Annotated[str, typer.Option(help="ri, pr, prf, l2sp, wise, gaussian or dwp.")] = "dwp",
    source: Annotated[Path | None, typer.Option(help="Source model folder.")] = None,
    prior: Annotated[Path | None, typer.Option(help="Filter prior, for dwp.")] = None,
    kernels: Annotated[Path | None, typer.Option(help="Kernel set, for init=resampled.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Method settings: key=value.")
    ] = None,
) -> None:
    """Fine-tune on every case of the target and save the model."""
    from medseg.cli.session import begin
    from medseg.config.build import load_method, load_plan
    from medseg.errors import ConfigError
    from medseg.experiment.run import plan_key
    from medseg.experiment.single import finetune_target, load_source_model

    plan = load_plan(config, overrides or (), command=f"medseg finetune {config}")
    chosen = load_method(method, options or ())
    if chosen.method != "ri" and source is None:
        raise ConfigError(
            f"--method {chosen.method} transfers from a source model, but --source is not given.",
            hint="Train one with `medseg train`, or take --method ri.",
        )
    if chosen.method == "dwp" and prior is None:
        raise ConfigError(
            "--method dwp needs a filter prior, but --prior is not given.",
            hint="Make one with `medseg harvest` and `medseg fit-prior`.",
        )
    begin(out)
    loaded = None if source is None else load_source_model(source, prior=prior, kernels=kernels)
    finetune_target(plan, chosen, source=loaded, out=out, key=plan_key(plan))
    typer.echo(str(out))
