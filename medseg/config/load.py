"""Read a YAML, apply ``key=value`` overrides, and name every mistake at once."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from medseg.errors import ConfigError

T = TypeVar("T")


def shipped_configs() -> Path:
    """Return the folder of the configurations that come with medseg."""
    inside = Path(str(resources.files("medseg"))) / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def find_config(name: str) -> Path:
    """Return a configuration given as a path, or by its name among the shipped ones.

    Raises
    ------
    ConfigError
        There is none.

    Examples
    --------
    >>> find_config("experiment/demo").name
    'demo.yaml'
    """
    own = Path(name)
    if own.is_file():
        return own
    folder = shipped_configs()
    known = sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))
    for path in known:
        if name in (str(path), str(path.with_suffix("")), path.name, path.stem):
            return folder / path
    raise ConfigError(
        f"A configuration is a file or one of {[str(path) for path in known]}, but it is {name!r}.",
        hint="Check the path.",
    )


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a YAML file with ``dotted.key=value`` overrides applied.

    Raises
    ------
    ConfigError
        The file is not YAML, holds no mapping, or an override is not ``key=value``.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} must be readable YAML, but {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold keys and values, but it holds {type(values).__name__}."
        )
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"An override has the form key=value, but it is {override!r}.",
                hint="Write for example protocol.seed=1.",
            )
        _set(values, key.split("."), yaml.safe_load(text), override)
    return values


def _set(values: Any, keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if isinstance(values, list):
            values = values[int(key)]
        elif isinstance(values, dict):
            values = values.setdefault(key, {})
        if not isinstance(values, dict | list):
            raise ConfigError(f"{override!r} sets a key below a value: {key!r} is {values!r}.")
    if isinstance(values, list):
        values[int(keys[-1])] = value
    else:
        values[keys[-1]] = value


def validate(schema: type[T], values: Any, *, where: str) -> T:
    """Return ``values`` as an instance of ``schema``.

    Raises
    ------
    ConfigError
        Naming every wrong key and value, with the nearest allowed key.
    """
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        faults = [_fault(schema, dict(item)) for item in error.errors()]
        raise ConfigError(
            f"{where}: " + "; ".join(faults) + ".", hint="Mend these keys and run again."
        ) from error


def _fault(schema: type[Any], item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "unexpected_keyword_argument":
        allowed = _fields(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], allowed, n=1)
        guess = f", did you mean {near[0]!r}?" if near else ""
        return f"{key} is not a key{guess} (allowed: {', '.join(sorted(allowed))})"
    return f"{key}: {item['msg']}, but it is {item.get('input')!r}"


def _fields(schema: Any, location: Sequence[str]) -> list[str]:
    for part in location:
        fields = getattr(schema, "__pydantic_fields__", None)
        if fields is None or part not in fields:
            continue
        annotation = fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)]
        schema = (
            inner[-1] if inner and not hasattr(annotation, "__pydantic_fields__") else annotation
        )
    return list(getattr(schema, "__pydantic_fields__", {}))
