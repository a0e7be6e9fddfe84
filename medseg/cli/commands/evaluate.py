"""``medseg evaluate``: masks against references."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.")],
    references: Annotated[Path, typer.Argument(help="Folder of reference masks.")],
    out: Annotated[Path, typer.Option(help="Table to write (TSV).")],
    region: Annotated[
        str | None,
        typer.Option(help="Region of medseg's predictions to score; all they hold if not given."),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(help="Labels of the reference that are lesion, or the region; all if empty."),
    ] = "",
) -> None:
    """Score every reference, case by case; a missing prediction counts as the worst.

    A prediction that cannot be scored counts as missing and is told in TABLE_failures.tsv.
    """
    from medseg.batch.evaluate import evaluate_folders
    from medseg.batch.tables import FAILURE_COLUMNS
    from medseg.cli.session import begin
    from medseg.errors import ConfigError
    from medseg.io.atomic import write_table
    from medseg.metrics.evaluate import aggregate

    begin()
    parts = [part.strip() for part in labels.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"--labels must be numbers joined by commas, but it is {labels!r}.")
    chosen = tuple(int(part) for part in parts)
    found = evaluate_folders(predictions, references, region=region, labels=chosen)
    write_table(out, found.cases)
    write_table(out.with_name(f"{out.stem}_lesions.tsv"), found.lesions)
    failures = out.with_name(f"{out.stem}_failures.tsv")
    write_table(failures, found.failures, columns=FAILURE_COLUMNS)
    for name, total in aggregate(found.cases).items() if found.cases else ():
        typer.echo(f"{name}\t{total.mean:.4g}\tn={total.n}\tmissing={total.n_missing}")
    if found.failures:
        typer.echo(f"{len(found.failures)} failed: {failures}", err=True)
        raise typer.Exit(3 if found.cases else 4)
