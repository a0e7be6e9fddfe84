"""``medseg evaluate``: masks against references."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.")],
    references: Annotated[Path, typer.Argument(help="Folder of reference masks.")],
    out: Annotated[Path, typer.Option(help="Table to write (TSV).")],
    labels: Annotated[
        str, typer.Option(help="Labels of the lesion, e.g. 1,3,4; all if empty.")
    ] = "",
) -> None:
    """Score every reference, case by case; a missing prediction counts as the worst."""
    from medseg.batch.evaluate import evaluate_folders
    from medseg.cli.session import begin
    from medseg.errors import ConfigError
    from medseg.io.atomic import write_table
    from medseg.metrics.evaluate import aggregate

    begin()
    parts = [part.strip() for part in labels.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"--labels must be numbers joined by commas, but it is {labels!r}.")
    chosen = tuple(int(part) for part in parts)
    cases, lesions = evaluate_folders(predictions, references, labels=chosen)
    write_table(out, cases)
    write_table(out.with_name(f"{out.stem}_lesions.tsv"), lesions)
    for name, total in aggregate(cases).items():
        typer.echo(f"{name}\t{total.mean:.4g}\tn={total.n}\tmissing={total.n_missing}")
