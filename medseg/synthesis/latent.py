"""Lesions that grow, shrink and move along the codes of a model of masks or looks."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.base import GenerativeBase

_LEAST_NORM = 1e-6


def path_between(
    model: GenerativeBase, first: Tensor, second: Tensor, *, steps: int, spherical: bool = False
) -> Tensor:
    """Return items on the way from one item to another through their codes.

    Parameters
    ----------
    model : GenerativeBase
        With ``encode`` and ``decode``.
    first, second : Tensor, shape (*event)
    steps : int
        2 or more; the ends are the reconstructions of the two.
    spherical : bool
        Along the great circle, so that codes keep their length, which is nearly the same for all
        codes of a standard normal in many dimensions (White 2016, section 2.1); else straight.

    Returns
    -------
    Tensor, shape (steps, *event)

    Raises
    ------
    ModelError
        The model has no codes.
    ShapeError
        ``steps`` is below 2.
    """
    if steps < 2:
        raise ShapeError(f"A path has two steps or more, but steps is {steps}.")
    _check_codes(model)
    a, b = model.encode(torch.stack([first, second])).detach()
    shares = torch.linspace(0.0, 1.0, steps)[:, None]
    codes = (1 - shares) * a + shares * b
    lengths = a.norm() * b.norm()
    if spherical and float(lengths) > _LEAST_NORM:
        angle = torch.acos((a @ b / lengths).clamp(-1 + 1e-6, 1 - 1e-6))
        codes = (torch.sin((1 - shares) * angle) * a + torch.sin(shares * angle) * b) / torch.sin(
            angle
        )
    return model.decode(codes).detach()


def attribute_direction(
    model: GenerativeBase, items: Tensor, values: Tensor, *, ridge: float = 1e-2
) -> Tensor:
    """Return the step in code space, (k,), that raises an attribute by one, all else as it is.

    The codes' least-squares answer to the attribute, ``C' v (v' v)^-1`` of centred codes and
    values: the mean change of the code per unit of volume, of place along an axis, or of anything
    that can be measured on an item.

    Parameters
    ----------
    model : GenerativeBase
        With ``encode``.
    items : Tensor, shape (m, *event)
    values : Tensor, shape (m,)
        The attribute of each item.
    ridge : float
        Share of the values' variance that is added to it.

    Raises
    ------
    ModelError
        The model has no codes, or the attribute is the same for all items.
    """
    _check_codes(model)
    if values.shape != items.shape[:1]:
        raise ShapeError(
            f"Each of {len(items)} items needs one value, but values are {tuple(values.shape)}."
        )
    centred = values.float() - values.float().mean()
    power = centred.square().sum()
    if float(power) <= 0.0:
        raise ModelError(
            f"A direction needs items that differ in the attribute, but it is {float(values[0]):g} "
            "for all.",
            hint="Give items of different volume or place.",
        )
    codes = model.encode(items).detach()
    return (codes - codes.mean(0)).T @ centred / (power * (1 + ridge))


def change(model: GenerativeBase, item: Tensor, direction: Tensor, amounts: Tensor) -> Tensor:
    """Return an item with an attribute changed by ``amounts`` (n,), shape (n, *event)."""
    _check_codes(model)
    code = model.encode(item[None]).detach()
    return model.decode(code + amounts[:, None] * direction).detach()


def _check_codes(model: GenerativeBase) -> None:
    if not {"encode", "decode"} <= model.provides:
        raise ModelError(
            f"Items are changed along their codes, but kind {model.kind!r} has no way to codes and "
            "back.",
            hint="Use cube_vae, vae, pca, dbn or an autoencoder.",
        )
