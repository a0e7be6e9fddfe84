"""``medseg experiment``: a few-shot grid with statistics and a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def experiment(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with what is in the folder.")] = False,
    shard: Annotated[str, typer.Option(help="i/n: this process does the i-th of n parts.")] = "1/1",
) -> None:
    """Run methods x subsets, each cell resumable, then write tables and the report."""
    run_and_report(
        config,
        out,
        overrides=overrides or (),
        resume=resume,
        command=f"medseg experiment {config}",
        shard=shard,
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Return ``(i - 1, n)`` of "i/n".

    Raises
    ------
    ConfigError
        It is not of this form, or i is not in 1..n.
    """
    from medseg.errors import ConfigError

    first, _, count = text.partition("/")
    if first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count):
        return int(first) - 1, int(count)
    raise ConfigError(f"A shard is i/n with i from 1 to n, but it is {text!r}.")


def run_and_report(
    config: str,
    out: Path,
    *,
    overrides: Sequence[str],
    resume: bool,
    command: str,
    shard: str = "1/1",
) -> None:
    """Run an experiment, write its report and print its table."""
    from medseg.cli.session import begin
    from medseg.config.build import load_plan
    from medseg.experiment.run import run_experiment
    from medseg.report import summary_table, write_report

    plan = load_plan(config, overrides, command=" ".join([command, *overrides]))
    begin(out)
    failed = run_experiment(plan, out, resume=resume, shard=parse_shard(shard))
    has_scores = (out / "scores.tsv").is_file()
    if has_scores:
        page = write_report(out)
        typer.echo(summary_table(out))
        typer.echo(f"report: {page}")
    if failed:
        typer.echo(f"{len(failed)} cells failed: {out / 'failures.tsv'}; --resume tries them again")
        raise typer.Exit(3 if has_scores else 4)
