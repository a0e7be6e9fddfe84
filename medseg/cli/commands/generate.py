"""``medseg generate``: generated cases as NIfTI."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the cases.")],
    config: Annotated[
        str,
        typer.Argument(help="YAML with kind and settings of a generated source, or a shipped one."),
    ] = "",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")
    ] = None,
    source: Annotated[str, typer.Option(help="Instead of a YAML: phantom or learned.")] = "",
    count: Annotated[int, typer.Option(help="Number of cases.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Another seed is another cohort.")] = None,
) -> None:
    """Write generated scans with masks; cases that are there already are kept."""
    from medseg.cli.session import begin
    from medseg.config.generate import load_generator
    from medseg.synthesis.writing import write_cases

    # With --source, the first free word is an override too.
    given = list(overrides or ())
    name = config
    if source and config:
        given, name = [config, *given], ""
    made = load_generator(name, given, kind=source, count=count, seed=seed)
    begin(out)
    for folder in write_cases(
        made.source, out, count=count, config=made.config, definition=made.definition
    ):
        typer.echo(str(folder))
