"""``medseg demo``: the whole main job on embedded data."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Argument(help="Folder for everything the demonstration makes.")],
    full: Annotated[bool, typer.Option(help="The long version: hours, resumable.")] = False,
) -> None:
    """Move knowledge from MS scans to a few tumour scans, on generated data, with a report."""
    from medseg.cli.commands.experiment import run_and_report

    name = "experiment/demo_full" if full else "experiment/demo"
    run_and_report(name, out, overrides=(), resume=True, command="medseg demo OUT")
