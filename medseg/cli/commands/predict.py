"""``medseg predict``: masks, uncertainty and volumes for one scan or many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from medseg.batch.run import BatchSummary


def predict(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    input: Annotated[Path, typer.Argument(help="A scan, a case folder, or a folder of cases.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    samples: Annotated[int, typer.Option(help="Posterior samples.", min=1)] = 10,
    posterior: Annotated[
        Literal["full", "focused"],
        typer.Option(help="Where samples are computed: everywhere, or where uncertain."),
    ] = "full",
    profile: Annotated[
        Literal["fast", "default", "best"],
        typer.Option(help="fast: least work, int8 where it agrees; best: half overlap, float32."),
    ] = "default",
    windows: Annotated[
        Literal["trained", "largest"],
        typer.Option(help="As large as the patches trained on, or as memory allows: less work."),
    ] = "trained",
    engine: Annotated[
        Literal["auto", "eager", "torch", "openvino", "onnx"],
        typer.Option(help="What runs a deterministic network; auto measures once per model."),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(help="Memory to keep to, as 4G or 500M; by default most of what is free."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    refine: Annotated[
        bool,
        typer.Option(
            help="Hold what the network says against each scan's own intensities, where the "
            "model was made to (medseg finetune --refine)."
        ),
    ] = True,
    read_ahead: Annotated[
        int, typer.Option(help="Scans read while the network works; 0 saves memory.", min=0)
    ] = 1,
) -> None:
    """Segment scans; one that cannot be read does not stop the others."""
    from functools import partial

    from medseg.batch.cases import find_cases
    from medseg.batch.place import check_places
    from medseg.batch.run import run_batch
    from medseg.cli.session import begin, log
    from medseg.inference.memory import check_reading
    from medseg.inference.model import load_model
    from medseg.inference.settings import PredictSettings, parse_memory
    from medseg.io.atomic import refuse_inside
    from medseg.networks.precision import resolve_device

    refuse_inside(out, input)
    begin(out)
    memory_gib = None if memory is None else parse_memory(memory)
    settings = PredictSettings(
        profile=profile,
        windows=windows,
        engine=engine,
        memory_gib=memory_gib,
        samples=samples,
        posterior=posterior,
        device=device,
        seed=seed,
        refine=refine,
    )
    on_gpu = resolve_device(device).type == "cuda"
    check = partial(check_reading, memory_gib=None if on_gpu else memory_gib)
    loaded = load_model(model)
    cases = find_cases(input, channels=loaded.spec.channels, check=check)
    check_places(cases, out=out, regions=loaded.spec.regions.names)

    def tell(identifier: str, outcome: str) -> None:
        log.info("%s %s", identifier, outcome)

    summary = run_batch(
        cases,
        model=loaded,
        out=out,
        settings=settings,
        on_finished=tell,
        read_ahead=read_ahead,
    )
    _end(summary, out)


def _end(summary: BatchSummary, out: Path) -> None:
    for failure in summary.failures:
        typer.echo(f"{failure.scan}\t{failure.stage}\t{failure.reason}\t{failure.hint}")
    typer.echo(
        f"{len(summary.done)} done, {len(summary.skipped)} done before, "
        f"{len(summary.failures)} failed: {out}"
    )
    if summary.failures:
        raise typer.Exit(3 if summary.done or summary.skipped else 4)
