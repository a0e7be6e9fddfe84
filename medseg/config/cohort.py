"""From what a user names to the scans that are looked at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.config.build import build_cohort, plain
from medseg.config.load import find_config, read_yaml, validate
from medseg.config.schema import DataConfig
from medseg.errors import ConfigError
from medseg.explore.items import (
    ScanItem,
    are_predictions,
    items_of_folder,
    items_of_predictions,
    items_of_source,
)
from medseg.explore.table import read_rows


def scans_of(
    data: str, overrides: Sequence[str] = (), *, predictions: Path | None = None
) -> list[ScanItem]:
    """Return the scans of a folder, of predictions, or of a configuration.

    Parameters
    ----------
    data : str
        A folder of cases; the output of ``medseg predict``; a YAML (or the name of a shipped one)
        of an experiment, whose sources and target are taken, or of one data set.
    overrides : sequence of str
        ``dotted.key=value`` for a YAML.
    predictions : Path, optional
        Masks for a folder of cases.

    Raises
    ------
    ConfigError
        No such thing, or overrides or predictions where there is no place for them.
    DataError
        Nothing to look at is there.
    """
    folder = Path(data)
    if not folder.is_dir():
        if predictions is not None:
            raise ConfigError(
                f"--predictions gives masks to a folder of scans, but {data!r} is no folder."
            )
        return _of_config(data, overrides)
    if overrides:
        raise ConfigError(
            f"Settings can be changed in a YAML, but {data} is a folder and {list(overrides)} are "
            "given.",
            hint="Write a YAML with kind, settings and root.",
        )
    if predictions is None and are_predictions(folder):
        return items_of_predictions(folder)
    return items_of_folder(folder, predictions=predictions)


def _of_config(name: str, overrides: Sequence[str]) -> list[ScanItem]:
    path = find_config(name)
    values = read_yaml(path, overrides)
    if "kind" in values:
        parts = [values]
    else:
        sources = values.get("sources") or {}
        mixes = sources.values() if isinstance(sources, Mapping) else []
        parts = [part for mix in mixes if isinstance(mix, list) for part in mix]
        parts += [values["target"]] if "target" in values else []
    # An experiment may name one data set in several sources.
    different = list({str(plain(part)): part for part in parts}.values())
    if not different:
        raise ConfigError(
            f"{path} must be a data set with 'kind', or an experiment with 'target', but it has "
            f"{sorted(values)}."
        )
    items = [item for part in different for item in _of_part(part, where=path.name)]
    names = [item.identifier for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{path}: a case must have one name, but {twice[:5]} are in several data sets.",
            hint="Set another name or seed in the settings of one.",
        )
    return items


def _of_part(part: Any, *, where: str) -> list[ScanItem]:
    config = validate(DataConfig, _lenient(part), where=where)
    source = build_cohort(config, where=where).source
    root = config.settings.get("root")
    return items_of_source(source, made_from=plain(part), root=None if root is None else Path(root))


def _lenient(part: Any) -> Any:
    """Return a data set that needs no masks: to look at scans, none is wanted."""
    if not isinstance(part, Mapping) or part.get("kind") == "phantom":
        return part
    given = {"label_required": False, "allow_empty": True, **(part.get("settings") or {})}
    regions = part.get("regions") or {"lesion": (1,)}
    return {**part, "settings": given, "regions": regions}


def origins_of(path: Path) -> dict[str, dict[str, str]]:
    """Return what a table says of the origin of each case: every column but the first.

    Raises
    ------
    DataError, ScanFileError
        It has no row, or cannot be read.
    """
    rows = read_rows(path)
    key, *others = rows[0]
    return {row[key]: {name: row[name].strip() for name in others} for row in rows}
