"""The command ``medseg``."""

import sys
from collections.abc import Sequence

from medseg.cli.app import app
from medseg.cli.commands import (
    calibrate,
    demo,
    evaluate,
    experiment,
    explore,
    finetune,
    generate,
    predict,
    prior,
    report,
    train,
    translate,
)
from medseg.cli.session import run

#: Name -> what it runs; typer lists them in this order.
COMMANDS = {
    "demo": demo.demo,
    "train": train.train,
    "harvest": prior.harvest,
    "fit-prior": prior.fit_prior,
    "finetune": finetune.finetune,
    "calibrate": calibrate.calibrate,
    "predict": predict.predict,
    "evaluate": evaluate.evaluate,
    "experiment": experiment.experiment,
    "generate": generate.generate,
    "report": report.report,
    "explore": explore.explore,
}

for _name, _function in COMMANDS.items():
    app.command(_name)(_function)
app.add_typer(translate.translate, name="translate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see :mod:`medseg.cli.session`."""
    return run(app, sys.argv[1:] if argv is None else argv)


def entry() -> None:
    """Run the command line as a program."""
    sys.exit(main())
