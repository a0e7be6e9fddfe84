"""The plan of an experiment that was run, from what it recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medseg.config.build import plan_of
from medseg.config.load import apply_overrides
from medseg.errors import ConfigError
from medseg.experiment.plan import ExperimentPlan


def load_finished(run: Path, overrides: Sequence[str] = ()) -> tuple[ExperimentPlan, str]:
    """Return the plan that a run folder recorded, with overrides, and the key of its records.

    The key is that of the run as it was; records under it are found again whatever the overrides.

    Parameters
    ----------
    run : Path
        Folder of an experiment.
    overrides : sequence of str
        ``dotted.key=value`` each, applied to the recorded configuration.

    Raises
    ------
    ConfigError
        The folder has no readable ``run.json`` with a configuration, or an override does not fit.
    DataError
        The data are no longer where the configuration says.
    """
    path = run / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        values, key = record["config"], str(record["config_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"RUN must be the folder of an experiment, but {path} cannot be read: {error!r}.",
            hint="Give the folder that `medseg experiment` wrote.",
        ) from error
    apply_overrides(values, overrides)
    return plan_of(values, where=str(path)), key
