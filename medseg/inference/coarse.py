"""Posterior samples for a tenth of a pass each: what other weights change is seen coarsely.

The mean weights see the whole image once, on its own grid. A sample adds to their logits what its
weights change, and that is computed on a grid with half the voxels along each axis:

    logits_k = logits of the mean weights, fine
             + upsampled (logits of sample k, coarse - logits of the mean weights, coarse)

The network on the coarse grid must be the same function, discretised anew. Its kernels, moved as
they are to a grid with voxels twice as long, would look for lesions twice as long, and the spread
of the logits came out a third too small in trained networks. So the taps of each kernel stay where
they are in mm and are interpolated from the coarse voxels around them (`tap_matrix`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.inference.predictor import HeadMode, Predictor, to_probabilities
from medseg.shapes import Image
from medseg.variational.convert import variational_layers
from medseg.variational.sampling import sampled_weights

#: Fine voxels to a coarse one along each axis.
COARSENING = 2
#: Probabilities are kept this far from 0 and 1 on their way back to logits.
_CLIP = 1e-7


class CoarsePosterior:
    """Samples of a variational network: one fine pass is done, each sample takes a coarse one.

    Sample k sees the same weights as a full pass of sample k does. Without any spread in the
    weights each sample is the fine pass.

    Parameters
    ----------
    network : nn.Module
        With variational layers; shared, not changed.
    image : Tensor, shape (c, x, y, z)
    mean : Tensor, shape (n, x, y, z)
        Probabilities of the mean weights on the image's grid, by whatever engine and windows.
    predictor : callable
        A network to a predictor of images (c, x', y', z').
    mode : "regions" or "classes"
        How logits became probabilities.
    dims : 2 or 3
        Spatial axes the network sees.

    Notes
    -----
    Memory beside the coarse pass: the mean's logits, once. A network of slices sees half as many.
    """

    def __init__(
        self,
        network: nn.Module,
        image: Image,
        *,
        mean: Tensor,
        predictor: Callable[[nn.Module], Predictor],
        mode: HeadMode,
        dims: int,
    ) -> None:
        size = image.shape[1:]
        coarse = [-(-length // COARSENING) for length in size]
        factors = [fine / length for fine, length in zip(size, coarse, strict=True)][:dims]
        self._twin = coarse_twin(network, factors)
        self._taps = tap_matrix(factors).to(image.device)
        self._predict = predictor(self._twin)
        self._mode: HeadMode = mode
        self._image = F.interpolate(image[None], size=coarse, mode="area")[0]
        self._mean = _to_logits(mean, mode)
        with torch.no_grad(), resampled_kernels(self._twin, self._taps):
            self._reference = _to_logits(self._predict(self._image), mode)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return the probabilities (n, x, y, z) of the weights that a generator draws."""
        twin = self._twin
        with torch.no_grad(), sampled_weights(twin, generator), resampled_kernels(twin, self._taps):
            change = _to_logits(self._predict(self._image), self._mode).sub_(self._reference)
        logits = F.interpolate(change[None], size=self._mean.shape[1:], mode="trilinear")
        return to_probabilities(logits.add_(self._mean), mode=self._mode)[0]


def _to_logits(probabilities: Tensor, mode: HeadMode) -> Tensor:
    """Return logits (n, x, y, z) that `to_probabilities` takes back to (n, x, y, z)."""
    if mode == "regions":
        return probabilities.logit(eps=_CLIP)
    return probabilities.clamp_min(_CLIP).log_()


def tap_matrix(factors: Sequence[float]) -> Tensor:
    """Return what turns kernels of size 3 into kernels for a coarser grid.

    The taps of a kernel stand one fine voxel apart, which is ``1 / factor`` of a coarse one. Linear
    interpolation between the coarse voxels around a tap shares its weight among them. On an image
    that is linear in position the new kernel on the coarse grid says what the old one says on the
    fine grid.

    Parameters
    ----------
    factors : sequence of float
        Fine voxels to a coarse one along each axis of the kernel, 1 or more.

    Returns
    -------
    Tensor, shape (3**d, 3**d)
        ``new = matrix @ old`` for flattened kernels; columns sum to 1.

    Examples
    --------
    >>> tap_matrix([2.0])
    tensor([[0.5000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.5000],
            [0.0000, 0.0000, 0.5000]])
    """
    axes = []
    for factor in factors:
        outer = 1.0 / factor
        inner = 1.0 - outer
        axes.append(torch.tensor([[outer, 0, 0], [inner, 1, inner], [0, 0, outer]]))
    return reduce(torch.kron, axes)


@contextmanager
def resampled_kernels(network: nn.Module, taps: Tensor) -> Iterator[None]:
    """Hold the weights of all variational layers as a coarser grid wants them inside the block.

    Inside a block of ``sampled_weights`` these are the weights it holds, else the means.

    Parameters
    ----------
    network : nn.Module
    taps : Tensor
        From :func:`tap_matrix`.
    """
    layers = list(variational_layers(network).values())
    before = [layer.held_weight for layer in layers]
    try:
        for layer, held in zip(layers, before, strict=True):
            weight = layer.posterior.mean.detach() if held is None else held
            layer.held_weight = (weight.reshape(-1, len(taps)) @ taps.T).view(weight.shape)
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.held_weight = held


def coarse_twin(network: nn.Module, factors: Sequence[float]) -> nn.Module:
    """Return a network in evaluation for a coarser grid, but for the kernels of size 3.

    It shares all weights with ``network`` except those of transposed convolutions, and it is in
    evaluation. What a transposed convolution of kernel and stride 2 makes of a voxel are its two
    halves along each axis; on a grid coarser by 2 such a pair is one voxel, their mean.

    Parameters
    ----------
    network : nn.Module
        Not changed.
    factors : sequence of float
        Fine voxels to a coarse one along each axis the network sees.
    """
    transposed = {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d)
    }
    shared = {id(p): p for p in network.parameters() if id(p) not in transposed}
    twin = copy.deepcopy(network, shared).eval()
    for module in twin.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            weight = module.weight.data
            for axis, factor in enumerate(factors, start=2):
                share = min(factor - 1.0, 1.0)
                weight = weight.lerp(weight.mean(axis, keepdim=True).expand_as(weight), share)
            module.weight.data = weight
    return twin
