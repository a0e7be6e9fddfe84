"""``medseg train``: source networks, harvested, with their filter prior."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="YAML of an experiment, or a shipped one's name.")],
    out: Annotated[Path, typer.Argument(help="Folder for the models.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")
    ] = None,
    source: Annotated[str, typer.Option(help="Which source; the first one if empty.")] = "",
) -> None:
    """Train the members of a source on bootstrap resamples of its subjects; resumes by itself."""
    from medseg.cli.session import begin
    from medseg.config.build import load_plan
    from medseg.errors import ConfigError
    from medseg.experiment.record import plan_key
    from medseg.experiment.sources import train_members

    plan = load_plan(config, overrides or (), command=f"medseg train {config}")
    name = source or next(iter(plan.sources))
    if name not in plan.sources:
        raise ConfigError(f"--source must be one of {sorted(plan.sources)}, but it is {name!r}.")
    begin(out)
    for folder in train_members(plan, name, out, key=plan_key(plan)):
        typer.echo(str(folder))
