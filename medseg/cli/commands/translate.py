"""``medseg translate``: scans of one kind made from scans of another."""

from pathlib import Path
from typing import Annotated

import typer

translate = typer.Typer(
    no_args_is_help=True,
    help="Make a missing modality, another scanner's looks, or thin slices from thick ones.",
)


@translate.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Argument(help="Folder of the translator.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: dotted.key=value ...")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with what is in the folder.")] = True,
) -> None:
    """Train a translator; a training that was cut short goes on."""
    from medseg.cli.session import begin, log
    from medseg.config.translation import load_translation
    from medseg.translation.fit import train_translator

    plan = load_translation(config, overrides or ())
    begin(out)
    log.info("%s: %s, %d cases", plan.title, plan.settings.method, len(plan.source))
    train_translator(plan.settings, plan.source, plan.other, folder=out, resume=resume)
    typer.echo(str(out))


@translate.command()
def apply(
    model: Annotated[Path, typer.Argument(help="Folder of a translator.")],
    input: Annotated[Path, typer.Argument(help="A scan, a case folder, or a folder of cases.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
) -> None:
    """Translate scans; each is marked synthetic. One that fails does not stop the others."""
    from medseg.batch.cases import find_cases
    from medseg.cli.session import begin, log
    from medseg.errors import MedsegError
    from medseg.io.atomic import refuse_inside, write_table
    from medseg.translation.model import load_translator
    from medseg.translation.outputs import write_translation

    refuse_inside(out, input)
    begin(out)
    translator = load_translator(model)
    done, failures = 0, list[dict[str, object]]()
    for identifier, load in find_cases(input, channels=translator.settings.channels):
        try:
            write_translation(translator, load(), out, model=model)
        except MedsegError as error:
            failures.append({"scan": identifier, "reason": error.message, "hint": error.hint})
            typer.echo(f"{identifier}\t{error.message}\t{error.hint}")
            continue
        done += 1
        log.info("%s done", identifier)
    if failures:
        write_table(out / "failures.tsv", failures)
    typer.echo(f"{done} done, {len(failures)} failed: {out}")
    if failures:
        raise typer.Exit(3 if done else 4)
