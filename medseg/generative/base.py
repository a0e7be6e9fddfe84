"""What all generative models share: checks, refusals, storage; a kind adds its mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.fitting import FitRecord
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.storage import read_folder, write_folder

# What a model may provide, and the words for not having it.
_LACKING = {
    "sample": "cannot be sampled",
    "bound": "has no normalised density, so it has no bound",
    "energy": "has no energy",
    "encode": "has no codes, so it cannot encode",
    "decode": "cannot decode codes",
    "reconstruct": "cannot reconstruct items",
}
#: Everything a kind may provide.
CAPABILITIES = frozenset(_LACKING)


class GenerativeBase(nn.Module):
    """A distribution over, or a code of, tensors of one shape.

    A kind of model is a subclass that names itself and its settings, lists what it provides, and
    implements :meth:`_fit` and the listed methods. Everything it learns is a parameter or a buffer
    whose shape follows from ``event_shape`` and ``settings``, so that it can be stored. Layers are
    built by :mod:`medseg.generative.layers`, which leaves torch's global generator alone.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : settings of the kind
        Sizes and fit.

    Attributes
    ----------
    kind : str
        Name in :data:`medseg.generative.catalog.KINDS`, and of the files it is stored in.
    settings_type : type
        Class of the settings.
    provides : frozenset of str
        Subset of :data:`CAPABILITIES`; what is not in it refuses. An instance may narrow it when
        its settings decide.
    is_exact : bool
        The bound is log p itself.
    is_normalised : bool
        The bounded density integrates to one, so that nats compare between kinds.
    """

    kind: ClassVar[str]
    settings_type: ClassVar[type[Any]]
    provides: frozenset[str] = frozenset()
    is_exact: bool = False
    is_normalised: bool = False
    settings: Any

    def __init__(self, event_shape: tuple[int, ...], settings: Any) -> None:
        super().__init__()
        self.event_shape = tuple(int(length) for length in event_shape)
        if not self.event_shape or min(self.event_shape) < 1:
            raise ShapeError(
                f"An item has one axis or more, each of length 1 or more, but its shape is "
                f"{self.event_shape}."
            )
        self.settings = settings

    @property
    def size(self) -> int:
        """Numbers in one item."""
        return math.prod(self.event_shape)

    @property
    def condition_size(self) -> int:
        """Numbers in the condition of an item; 0 where the kind takes none."""
        return getattr(self.settings, "condition_size", 0)

    @property
    def fewest_items(self) -> int:
        """Fewest items the model can be fitted to."""
        return 2

    def fit(
        self, items: Items, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> FitRecord:
        """Fit to ``items`` afresh; the same generator state gives the same model.

        Raises
        ------
        ShapeError
            Items or condition of another shape.
        ModelError
            Too few items, NaN or Inf among them, all the same, or a fit that diverged.
        """
        return self._checked_fit(self._fit, items, generator=generator, condition=condition)

    def _checked_fit(
        self,
        fit: Callable[..., FitRecord],
        items: Items,
        *,
        generator: torch.Generator,
        condition: Conditions | None,
    ) -> FitRecord:
        """Call ``fit``, which is as :meth:`_fit`, with checks before and after it."""
        self.check_items(items, condition)
        items = items.detach().float()
        condition = None if condition is None else condition.detach().float()
        self.check_fittable(items, condition)
        self.requires_grad_(True).train()
        try:
            record = fit(items, generator=generator, condition=condition)
        finally:
            self.eval()
        bad = [name for name, value in self.state_dict().items() if not _is_finite(value)]
        if bad:
            raise ModelError(
                f"A fit must end with finite numbers, but {', '.join(bad)} of this {self.kind} are "
                f"not.",
                hint="Use a smaller learning rate, or look for outliers among the items.",
            )
        return record

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        """Fit to checked float32 items on their device; reset all that is learned first."""
        raise NotImplementedError

    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items drawn from the model, (n, *event_shape)."""
        raise self._lacks("sample")

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return a lower bound (if random, in expectation) on log p in nats, (m,)."""
        raise self._lacks("bound")

    def energy(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return -log p in nats up to a constant, (m,), differentiable: minus the bound if any."""
        if "bound" not in self.provides:
            raise self._lacks("energy")
        return -self.bound(items, generator=generator, condition=condition)

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the code of each item, (m, k); of a random code its mean."""
        raise self._lacks("encode")

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the item of each code, (m, *event_shape); of a random item its mean."""
        raise self._lacks("decode")

    def reconstruct(self, items: Items, *, condition: Conditions | None = None) -> Items:
        """Return the items as the model sees them, (m, *event_shape): by default decoded codes."""
        if not {"encode", "decode"} <= self.provides:
            raise self._lacks("reconstruct")
        return self.decode(self.encode(items, condition=condition), condition=condition)

    def save(self, folder: Path) -> None:
        """Write ``<kind>.safetensors`` and ``<kind>.json``."""
        write_folder(folder, self.kind, self.state_dict(), self.describe())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model written by :meth:`save`.

        Raises
        ------
        ModelError
            A file is missing, damaged, or of another kind.
        """
        tensors, description = read_folder(folder, cls.kind)
        return cls.restore(description, tensors)

    def describe(self) -> dict[str, object]:
        """Return what :meth:`restore` needs beside the tensors, as JSON."""
        dumped = TypeAdapter(self.settings_type).dump_python(self.settings, mode="json")
        return {"kind": self.kind, "event_shape": list(self.event_shape), "settings": dumped}

    @classmethod
    def restore(cls, description: dict[str, object], tensors: dict[str, Tensor]) -> Self:
        """Return the model of :meth:`describe` and ``state_dict``."""
        try:
            if description["kind"] != cls.kind:
                raise ValueError(f"it is described as {description['kind']!r}")
            options = TypeAdapter(cls.settings_type).validate_python(description["settings"])
            shape = TypeAdapter(tuple[int, ...]).validate_python(description["event_shape"])
            model = cls(shape, options)
            model.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"The description and tensors of a model of kind {cls.kind!r} must fit, but: "
                f"{error}",
                hint="The folder was written by another version or changed: fit the model again.",
            ) from error
        return model.eval()

    def check_items(self, items: Tensor, condition: Tensor | None = None) -> None:
        """Refuse items that are not (m, *event_shape) and conditions that do not go with them."""
        if tuple(items.shape[1:]) != self.event_shape or items.ndim == 0:
            raise ShapeError(
                f"Items must be (m, {', '.join(map(str, self.event_shape))}), but they are "
                f"{tuple(items.shape)}."
            )
        self.check_condition(len(items), condition)

    def check_condition(self, n: int, condition: Tensor | None) -> None:
        """Refuse a condition that is not (n, condition_size)."""
        found = (n, 0) if condition is None else tuple(condition.shape)
        if found != (n, self.condition_size):
            raise ShapeError(
                f"{n} items of this model need a condition of shape ({n}, {self.condition_size}), "
                f"but it is {found}."
            )

    def check_codes(self, codes: Tensor, size: int) -> None:
        """Refuse codes that are not (m, size)."""
        if codes.ndim != 2 or codes.shape[1] != size:
            raise ShapeError(
                f"Codes of this {self.kind} must be (m, {size}), but they are {tuple(codes.shape)}."
            )

    def check_fittable(self, items: Tensor, condition: Tensor | None = None) -> None:
        """Refuse too few items, NaN and Inf, and items that are all the same."""
        finite = torch.isfinite(items).flatten(1).all(1)
        if condition is not None:
            finite = finite & torch.isfinite(condition).all(1)
        if len(items) < self.fewest_items or not bool(finite.all()):
            raise ModelError(
                f"A fit needs at least {self.fewest_items} items, all finite, but "
                f"{int(finite.sum())} of {len(items)} are finite.",
                hint="Leave out the items with NaN or Inf, or give more.",
            )
        spread = float((items - items[0]).abs().max())
        if spread <= 1e-7 * float(items.abs().max()):
            raise ModelError(
                f"Items must differ for a model to be fitted, but all {len(items)} are the same "
                f"(largest difference {spread:.1g}).",
                hint="Give items that vary; a constant needs no model.",
            )

    def vectors(self, items: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return checked items as rows, (m, size)."""
        self.check_items(items, condition)
        return items.flatten(1)

    def _lacks(self, what: str) -> ModelError:
        """Return the refusal of what the kind does not provide, naming the kinds that do."""
        # Here, since the catalogue imports every kind and every kind imports this module.
        from medseg.generative.catalog import KINDS

        others = [name for name, kind in KINDS.items() if what in kind.provides]
        return ModelError(
            f"A model of kind {self.kind!r} {_LACKING[what]}; {', '.join(others)} can.",
            hint="Choose one of those kinds, or ask this one for "
            f"{', '.join(sorted(self.provides)) or 'nothing'}.",
        )


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
