"""``medseg explore``: what is in a cohort, on one page."""

from pathlib import Path
from typing import Annotated

import typer


def explore(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder of scans, with or without masks; output of `medseg predict`; YAML of data "
            "or of an experiment, or a shipped one's name; or a CSV of features."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for page, tables and cache.")] = Path("explore"),
    predictions: Annotated[
        Path | None,
        typer.Option(help="Output of `medseg predict`: its masks, in place of the folder's own."),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV with a row per case: its name, then site, scanner ..."),
    ] = None,
    kernels: Annotated[
        Path | None, typer.Option(help="Kernel set, to see its intrinsic dimension.")
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Show case names on the page; else they are numbered.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything that draws.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of a YAML to change: dotted.key=value ...")
    ] = None,
) -> None:
    """Show which scans are alike, which are odd and in what, and how much they really vary."""
    from medseg.cli.session import begin, log
    from medseg.config.cohort import origins_of, scans_of
    from medseg.errors import ConfigError
    from medseg.explore import ExploreSettings, explore_scans, explore_table
    from medseg.priors.kernel_set import KernelSet

    settings = ExploreSettings(seed=seed, show_names=names)
    command, path = f"medseg explore {data} --out {out} --seed {seed}", Path(data)
    title = f"Cohort {path.resolve().name if path.is_dir() else path.stem}"
    if path.is_file() and path.suffix.lower() in {".csv", ".tsv"}:
        if predictions is not None or groups is not None or kernels is not None or overrides:
            raise ConfigError(
                f"A table of features stands alone, but with {data} --predictions, --groups, "
                "--kernels or settings are given.",
                hint="Put groups into columns of the table.",
            )
        begin(out)
        cohort = explore_table(path, out=out, title=title, settings=settings, command=command)
    else:
        origins = {} if groups is None else origins_of(groups)
        kernel_set = None if kernels is None else KernelSet.load(kernels)
        items = scans_of(data, overrides or (), predictions=predictions)
        begin(out)
        count = iter(range(1, len(items) + 1))

        def tell(identifier: str, outcome: str) -> None:
            log.info("%d of %d: %s %s", next(count), len(items), identifier, outcome)

        cohort = explore_scans(
            items,
            out=out,
            title=title,
            settings=settings,
            groups=origins,
            kernels=kernel_set,
            command=command,
            on_finished=tell,
        )
    for failure in cohort.failures:
        typer.echo(f"{failure.scan}\t{failure.stage}\t{failure.reason}\t{failure.hint}")
    typer.echo(f"page: {out / 'explore.html'}")
    if cohort.failures:
        raise typer.Exit(3)
