"""The one way to declare settings: frozen, keyword-only, checked, with unknown keys refused."""

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Return ``cls`` as a frozen, keyword-only dataclass whose values are validated.

    Raises
    ------
    pydantic.ValidationError
        On construction, when a value is of the wrong type or out of its limits, or a key is
        unknown.
    """
    make: Callable[[type[T]], Any] = dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", validate_default=True)
    )
    return make(cls)
