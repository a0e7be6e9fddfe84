"""``medseg predict``: masks, uncertainty and volumes for one scan or many."""

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    input: Annotated[Path, typer.Argument(help="A scan, a case folder, or a folder of cases.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    samples: Annotated[int, typer.Option(help="Posterior samples.", min=1)] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
) -> None:
    """Segment scans; one that cannot be read does not stop the others."""
    from medseg.batch.cases import find_cases
    from medseg.batch.run import run_batch
    from medseg.cli.session import begin, log
    from medseg.inference.model import load_model
    from medseg.inference.settings import PredictSettings

    begin(out)
    loaded = load_model(model)
    cases = find_cases(input, channels=loaded.spec.channels)
    settings = PredictSettings(samples=samples, device=device, seed=seed)

    def tell(identifier: str, outcome: str) -> None:
        log.info("%s %s", identifier, outcome)

    summary = run_batch(cases, model=loaded, out=out, settings=settings, on_finished=tell)
    for failure in summary.failures:
        typer.echo(f"{failure.scan}\t{failure.stage}\t{failure.reason}\t{failure.hint}")
    typer.echo(
        f"{len(summary.done)} done, {len(summary.skipped)} done before, "
        f"{len(summary.failures)} failed: {out}"
    )
    if summary.failures:
        raise typer.Exit(3 if summary.done or summary.skipped else 4)
