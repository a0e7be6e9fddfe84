"""Lesion masks that are known in part: the rest as a model of shapes completes it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.base import GenerativeBase
from medseg.generative.boltzmann import BoltzmannBase


def complete_masks(
    shape: GenerativeBase, masks: Tensor, known: Tensor, *, generator: Generator, chains: int = 8
) -> Tensor:
    """Return lesion masks whose unknown voxels are the most probable ones given the known.

    For a lesion that the field of view cuts, or that an artefact hides in part: the mean of Gibbs
    chains in which the known voxels are held. Voxels above one half are lesion; of nested masks
    each lies in the next.

    Parameters
    ----------
    shape : GenerativeBase
        Of masks, such as ``LesionModel.shape``: an rbm, dbn or dbm of binary units.
    masks : Tensor, shape (m, k, *s)
        Nested, 0 or 1, the innermost first; anything where unknown.
    known : Tensor of bool, shape (m, *s) or (*s)
        Where they are to be believed.
    generator : Generator
        Of the chains.
    chains : int
        Per mask.

    Returns
    -------
    Tensor, shape (m, k, *s)
        0 or 1; as given where known.

    Raises
    ------
    ModelError
        A model of another kind.
    ShapeError
        Masks that are not the model's, or another shape of what is known.
    """
    shape.check_items(masks)
    if not isinstance(shape, BoltzmannBase):
        raise ModelError(
            f"Masks are completed by a Boltzmann model, but kind {shape.kind!r} is none.",
            hint="Learn the lesions with shape_kind rbm, dbn or dbm; for an autoencoder see "
            "medseg.generative.restoration.",
        )
    if known.dtype != torch.bool or known.shape not in (
        masks.shape[2:],
        (len(masks), *masks.shape[2:]),
    ):
        raise ShapeError(
            f"What is known must be bool and {tuple(masks.shape[2:])}, or one such for each of "
            f"{len(masks)} masks, but it is {known.dtype} and {tuple(known.shape)}."
        )
    believed = (known if known.ndim == masks.ndim - 1 else known[None])[:, None].expand_as(masks)
    masks = masks.detach().float()
    found = shape.complete(masks, believed, generator=generator, chains=chains)
    # What lies in an inner mask lies in the outer ones.
    nested = (found > 0.5).float().cummax(1).values
    return torch.where(believed, masks, nested)
