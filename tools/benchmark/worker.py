"""One measurement in a process of its own: ``python -m tools.benchmark.worker TASK RESULT``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from tools.benchmark.measure import Clock, NotOfferedError


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Return what the task's function returns, or why it could not be done."""
    module, name = task["call"].split(":")
    load = os.getloadavg()[0]
    if task["shared"]:
        Clock.now = staticmethod(time.process_time)
    try:
        import torch

        torch.set_num_threads(task["threads"])
        function = getattr(import_module(f"tools.benchmark.{module}"), name)
        row = function(**task["arguments"])
    except ModuleNotFoundError as error:
        return {"status": "not installed", "reason": str(error)}
    except NotOfferedError as error:
        return {"status": "not offered", "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"status": _status(error), "reason": f"{type(error).__name__}: {error}"}
    return {"status": "measured", "load_before": load, **row}


def _status(error: Exception) -> str:
    """Return whether an error is medseg's word for an engine that is not here, or a failure."""
    if type(error).__name__ != "ConfigError":
        return "failed"
    return "not installed" if "imported" in str(error) else "not offered"


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # The peers print; their words go to the log with everything else.
    with contextlib.redirect_stdout(sys.stderr):
        result = perform(task)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
