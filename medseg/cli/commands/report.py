"""``medseg report``: one HTML page about a run."""

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Folder of an experiment.")]) -> None:
    """Write the self-contained HTML report of a run and print its table."""
    from medseg.cli.session import begin
    from medseg.report import summary_table, write_report

    begin()
    page = write_report(run)
    typer.echo(summary_table(run))
    typer.echo(f"report: {page}")
