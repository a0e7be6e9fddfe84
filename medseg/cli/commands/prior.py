"""``medseg harvest`` and ``medseg fit-prior``: from networks to a prior over their filters."""

from pathlib import Path
from typing import Annotated

import typer


def harvest(
    models: Annotated[list[Path], typer.Argument(help="Model folders of one architecture.")],
    out: Annotated[Path, typer.Option(help="Folder of the kernel set.")],
    prune: Annotated[float, typer.Option(help="Share of the smallest slices left out.")] = 0.0,
) -> None:
    """Collect every 3x3x3 (3x3) slice of the models."""
    from medseg.cli.session import begin
    from medseg.config.load import validate
    from medseg.inference.model import load_model
    from medseg.priors.harvest import HarvestSettings
    from medseg.priors.harvest import harvest as collect
    from medseg.variational.convert import to_deterministic

    settings = validate(HarvestSettings, {"prune_quantile": prune}, where="harvest")
    begin()
    # A calibration tells of predictions, which are not made here.
    loaded = [load_model(folder, ignore_calibration=True) for folder in models]
    networks = [to_deterministic(model.network) for model in loaded]
    kernels = collect(networks, settings=settings)
    kernels.save(out)
    typer.echo(f"{len(kernels)} kernels of {len(models)} networks: {out}")


def fit_prior(
    kernels: Annotated[Path, typer.Argument(help="Folder of a kernel set.")],
    out: Annotated[Path, typer.Option(help="Folder of the prior.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="diagonal, gaussian, ppca, gmm, flow, vae (if not given), boovae, rbm, dbn, dbm, "
            "dae, gan or som."
        ),
    ] = None,
    grouping: Annotated[
        str | None, typer.Option(help="layer (if not given), group or conditioned.")
    ] = None,
    extend: Annotated[
        Path | None,
        typer.Option(help="A prior of kind boovae that takes these kernels besides its own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the fit.")] = 0,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Settings of the prior: key=value.")
    ] = None,
) -> None:
    """Fit a filter prior and print held-out nats per kernel, side by side."""
    from medseg.cli.session import begin
    from medseg.config.load import apply_overrides, validate
    from medseg.priors.compare import COMPARED, compare_priors
    from medseg.priors.fit import FitPriorSettings, fit_priors
    from medseg.priors.kernel_set import KernelSet

    if extend is not None:
        asked = {"--kind": kind, "--grouping": grouping, "--set": options}
        _refuse_settings([name for name, value in asked.items() if value])
        _extend(kernels, extend, out, seed=seed)
        return
    values = {"kind": kind or "vae", "grouping": grouping or "layer"}
    apply_overrides(values, options or ())
    settings = validate(FitPriorSettings, values, where="fit-prior")
    begin()
    loaded = KernelSet.load(kernels)
    fit_priors(loaded, settings, seed=seed).save(out)
    compared = {**COMPARED, **({} if settings in COMPARED.values() else {"chosen": settings})}
    typer.echo("kind\tgrouping\tnats per kernel\tn\theld out")
    for row in compare_priors(loaded, settings=compared, seed=seed):
        if row["layer"] == "all":
            known = row["bound"] != "unnormalised"
            nats = f"{row['nats_per_kernel']:.3f}" if known else row["bound"]
            typer.echo(
                f"{row['kind']}\t{row['grouping']}\t{nats}\t{row['n_kernels']}\t{row['held_out']}"
            )


def _refuse_settings(given: list[str]) -> None:
    from medseg.errors import ConfigError

    if given:
        raise ConfigError(
            f"--extend keeps kind, grouping and settings of the prior that it extends, so "
            f"{' and '.join(given)} would have no effect.",
            hint=f"Leave {' and '.join(given)} out, or fit a new prior without --extend.",
        )


def _extend(kernels: Path, prior: Path, out: Path, *, seed: int) -> None:
    """Extend a prior and print nats per new kernel before and after, on kernels it has not seen."""
    from medseg.cli.session import begin
    from medseg.priors.compare import hold_out
    from medseg.priors.extend import extend_priors, mean_nats
    from medseg.priors.kernel_set import KernelSet
    from medseg.priors.layer_priors import LayerPriors

    begin()
    loaded, before = KernelSet.load(kernels), LayerPriors.load(prior)
    extend_priors(before, loaded, seed=seed).save(out)
    train, held, described = hold_out(loaded, seed=seed)
    after = extend_priors(before, train, seed=seed)
    typer.echo("prior\tnats per new kernel\tn\theld out")
    for name, priors in (("before", before), ("after", after)):
        nats = mean_nats(priors, held, seed=seed)
        typer.echo(f"{name}\t{nats:.3f}\t{len(held)}\t{described}")
