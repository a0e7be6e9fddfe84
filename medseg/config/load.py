"""Read a YAML, apply ``key=value`` overrides, and name every mistake at once."""

import difflib
import itertools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

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
    apply_overrides(values, overrides)
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set every ``dotted.key=value`` in ``values``; values are YAML, list items go by number.

    Raises
    ------
    ConfigError
        An override is not ``key=value``, or names a place that cannot be.

    Examples
    --------
    >>> values = {"sizes": [1, 2]}
    >>> apply_overrides(values, ["sizes.1=5", "training.steps=3"])
    >>> values
    {'sizes': [1, 5], 'training': {'steps': 3}}
    """
    for override in overrides:
        key, sign, text = override.partition("=")
        keys = key.split(".")
        if not sign or not all(keys):
            raise ConfigError(
                f"An override has the form key=value, but it is {override!r}.",
                hint="Write for example protocol.seed=1.",
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"The value of an override must be YAML, but in {override!r} it is not.",
                hint="Quote it, and write lists as [1, 2].",
            ) from error
        place: Any = values
        for step, following in itertools.pairwise(keys):
            index = _index(place, step, override)
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}
            place = place[index]
            if not isinstance(place, dict | list):
                raise ConfigError(
                    f"{override!r} sets {following!r} below a value: {step!r} is {place!r}."
                )
        place[_index(place, keys[-1], override)] = value


def _index(place: dict[str, Any] | list[Any], key: str, override: str) -> Any:
    if isinstance(place, dict):
        return key
    if key.isdigit() and int(key) < len(place):
        return int(key)
    raise ConfigError(
        f"{override!r} must name an item of a list by a number below {len(place)}, but it says "
        f"{key!r}.",
        hint="Count from 0, or give the whole list.",
    )


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
        raise faulty(where, _faults(schema, error)) from error


def find_faults(schema: type[Any], values: Any, *, where: str) -> list[str]:
    """Return what is wrong with ``values``, one sentence a key; keys begin with ``where``."""
    try:
        TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        return [f"{where}.{fault}" if where else fault for fault in _faults(schema, error)]
    return []


def faulty(where: str, faults: Sequence[str]) -> ConfigError:
    """Return the error that names all ``faults`` of the configuration ``where``."""
    return ConfigError(f"{where}: " + "; ".join(faults) + ".", hint="Mend these and run again.")


def _faults(schema: type[Any], error: ValidationError) -> list[str]:
    return [_fault(schema, dict(item)) for item in error.errors()]


def _fault(schema: type[Any], item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "unexpected_keyword_argument":
        allowed = _fields(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], allowed, n=1)
        guess = f", did you mean {near[0]!r}?" if near else ""
        return f"{key} is not a key{guess} (allowed: {', '.join(sorted(allowed))})"
    if item["type"].startswith("missing"):
        return f"{key} must be given"
    if not key:
        return str(item["msg"])
    return f"{key}: {item['msg']}, but it is {item.get('input')!r}"


def _fields(schema: Any, location: Sequence[str]) -> list[str]:
    for part in location:
        fields = getattr(schema, "__pydantic_fields__", None)
        if fields is None or part not in fields:
            continue
        schema = _settings_inside(fields[part].annotation, kinds=location)
    return list(getattr(schema, "__pydantic_fields__", {}))


def _settings_inside(annotation: Any, *, kinds: Sequence[str]) -> Any:
    """Return the settings class inside ``X | None``, ``tuple[X, ...]``, ``dict[str, X]``.

    Of several that their ``kind`` tells apart, the one whose kind is among ``kinds``.
    """
    fields = getattr(annotation, "__pydantic_fields__", None)
    if fields is not None:
        kind = fields["kind"].default if "kind" in fields else None
        return annotation if kind is None or kind in kinds or not isinstance(kind, str) else None
    found = (_settings_inside(part, kinds=kinds) for part in get_args(annotation))
    return next((part for part in found if part is not None), None)
