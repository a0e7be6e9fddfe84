"""``medseg calibrate``: what a model's probabilities, masks and volumes are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer


def calibrate(
    model: Annotated[Path, typer.Argument(help="Model folder; gets calibration.json.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Folder of scans with masks that the model was not trained on; or the YAML of an "
            "experiment: its target is taken."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of the data to change: target.key=value ..."),
    ] = None,
    coverage: Annotated[
        float, typer.Option(help="What is promised: 0.9 takes 9 subjects, 0.8 takes 4.")
    ] = 0.9,
    samples: Annotated[
        int, typer.Option(help="Posterior samples; promises hold for as many.", min=1)
    ] = 10,
    posterior: Annotated[
        Literal["full", "focused"], typer.Option(help="As for medseg predict.")
    ] = "full",
    profile: Annotated[
        Literal["fast", "default", "best"], typer.Option(help="As for medseg predict.")
    ] = "default",
    windows: Annotated[
        Literal["trained", "largest"], typer.Option(help="As for medseg predict.")
    ] = "trained",
    engine: Annotated[
        Literal["auto", "eager", "torch", "openvino", "onnx"],
        typer.Option(help="As for medseg predict."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    other_people: Annotated[
        bool,
        typer.Option(
            "--other-people",
            help="Subjects that share their names with those seen in training are others.",
        ),
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(help="What a folder of scans holds: ms or brats; recognised if not given."),
    ] = None,
) -> None:
    """Calibrate a model on labelled cases that it never saw.

    What is promised holds for predictions with the same profile, windows, samples and posterior.
    """
    from medseg.calibration.conformal import check_coverage
    from medseg.calibration.record import NAME
    from medseg.calibration.settings import CalibrationSettings
    from medseg.cli.session import begin, log, tell_people
    from medseg.config.folder import plan_for
    from medseg.experiment.crossfit import calibrate_on
    from medseg.inference.model import load_model
    from medseg.inference.settings import PredictSettings

    check_coverage(coverage)
    _refuse_ignored(overrides or ())
    loaded = load_model(model, ignore_calibration=True)
    command = f"medseg calibrate {model} {data}"
    plan = plan_for(data, overrides or (), kind=kind, source=loaded.spec, command=command)
    # Not in the folder: a model travels, and what is said of cases names them.
    folder = model.resolve()
    begin(folder.parent, name=f"{folder.name}_calibrate.log")
    tell_people("calibrating", plan.target.source)
    fitted = calibrate_on(
        loaded,
        plan.target,
        folder=model,
        other_people=other_people,
        predict=PredictSettings(
            samples=samples,
            posterior=posterior,
            profile=profile,
            windows=windows,
            engine=engine,
            device=device,
        ),
        settings=CalibrationSettings(coverage=coverage),
    )
    for name, region in fitted.regions.items():
        log.info(
            "%s: temperature %.2f, NLL %.4f -> %.4f nats a voxel, ECE %.4f -> %.4f",
            name,
            region.temperature,
            region.nll_before_nats,
            region.nll_after_nats,
            region.ece_before,
            region.ece_after,
        )
    typer.echo(str(model / NAME))


def _refuse_ignored(overrides: Sequence[str]) -> None:
    from medseg.errors import ConfigError

    ignored = [one for one in overrides if not one.startswith("target.")]
    if ignored:
        raise ConfigError(
            f"A model is calibrated as it is: only the data can be changed, by target.key=value, "
            f"but {', '.join(ignored[:3])} would have no effect.",
            hint="Leave it out; preprocessing, channels and regions are those of the model.",
        )
