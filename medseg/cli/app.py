"""The application all subcommands join, and its global options."""

from typing import Annotated

import typer

from medseg import __version__
from medseg.cli.session import SESSION

app = typer.Typer(
    name="medseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Few-shot transfer for MRI lesion segmentation, with uncertainty.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks and every message.")] = False,
    quiet: Annotated[bool, typer.Option(help="Show warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before the subcommand."""
    del version
    SESSION.debug, SESSION.quiet = debug, quiet
