"""Posterior samples computed only in the box where the mean weights are uncertain.

The mean weights see the whole image once. A sample adds to their logits what its weights change,
and that is computed in the box alone, on the image's own grid:

    logits_k = logits of the mean weights, whole image
             + (logits of sample k - logits of the mean weights, both over the box)

Outside the box every sample is the pass of the means. Inside, the difference cancels most of what
the box's border does, and of what the statistics of normalisations over the box do, which are not
those over the image. Both have to be taken over the same box: with statistics frozen at those of
the means samples spread too much, as a normalisation takes back much of what its weights change.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from medseg.inference.predictor import HeadMode, Predictor, to_probabilities
from medseg.inference.splitter import Window
from medseg.shapes import Image
from medseg.variational.sampling import sampled_weights

log = logging.getLogger(__name__)

#: Share of the uncertainty that the box may leave outside.
OUTSIDE = 0.02
#: Voxels around it, to each side.
MARGIN = 6
#: The box begins at multiples of this, so that three levels of a U-Net halve it as the image.
ALIGNMENT = 8
#: A box with a larger share of the image saves nothing worth an approximation.
LARGEST_SHARE = 0.8
#: Probabilities are kept this far from 0 and 1 on their way back to logits.
_CLIP = 1e-7


class FocusedPosterior:
    """Samples of a variational network: one pass over the image, each sample one over a box.

    Sample k sees the same weights as a full pass of sample k does. Without any spread in the
    weights each sample is the pass of the means. Where the box is most of the image, samples are
    full passes.

    Parameters
    ----------
    network : nn.Module
        With variational layers, in evaluation while samples are drawn.
    image : Tensor, shape (c, x, y, z)
    mean : Tensor, shape (n, x, y, z)
        Probabilities of the mean weights, by whatever engine and windows.
    predict : Predictor
        Of the network, by its weights of the moment.
    mode : "regions" or "classes"
        How logits became probabilities.

    Attributes
    ----------
    box : tuple of 3 slices
        Where samples differ.
    share : float
        Voxels in the box to voxels of the image.
    """

    def __init__(
        self,
        network: nn.Module,
        image: Image,
        *,
        mean: Tensor,
        predict: Predictor,
        mode: HeadMode,
    ) -> None:
        self._network, self._predict = network, predict
        self._mode: HeadMode = mode
        self._mean = mean
        self.box = uncertain_box(mean)
        self.share = math.prod(side.stop - side.start for side in self.box) / mean[0].numel()
        self.whole = self.share > LARGEST_SHARE
        log.info(
            "samples are computed in %s",
            "the whole image: uncertainty is all over it"
            if self.whole
            else f"a box of {100 * self.share:.0f} % of the image",
        )
        self._image = image if self.whole else image[(slice(None), *self.box)].contiguous()
        if not self.whole:
            logits = to_logits(mean[(slice(None), *self.box)], mode)
            self._offset = logits.sub_(to_logits(predict(self._image), mode))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return the probabilities (n, x, y, z) of the weights that a generator draws."""
        with torch.no_grad(), sampled_weights(self._network, generator):
            probabilities = self._predict(self._image)
        if self.whole:
            return probabilities
        logits = to_logits(probabilities, self._mode).add_(self._offset)
        sample = self._mean.clone()
        sample[(slice(None), *self.box)] = to_probabilities(logits[None], mode=self._mode)[0]
        return sample


def to_logits(probabilities: Tensor, mode: HeadMode) -> Tensor:
    """Return logits (n, x, y, z) that `to_probabilities` takes back to (n, x, y, z)."""
    if mode == "regions":
        return probabilities.logit(eps=_CLIP)
    return probabilities.clamp(min=_CLIP).log_()


def uncertain_box(probability: Tensor) -> Window:
    """Return a box that holds most of the uncertainty, with a margin.

    The uncertainty of a voxel is the variance ``p (1 - p)`` of being inside, summed over channels.
    Along each axis both ends are cut where they hold their part of `OUTSIDE`, so that single
    voxels far off, which a bounding box would have to reach, do not matter.

    Parameters
    ----------
    probability : Tensor, shape (n, x, y, z)

    Returns
    -------
    tuple of 3 slices
        Inside the image; the margin alone around the middle where nothing is uncertain.
    """
    variance = torch.addcmul(probability, probability, probability, value=-1).sum(dim=0).double()
    cut = OUTSIDE / (2 * variance.ndim)
    box = []
    for axis, length in enumerate(variance.shape):
        others = [other for other in range(variance.ndim) if other != axis]
        below = variance.sum(dim=others).cumsum(dim=0)
        if float(below[-1]) > 0:
            first, last = (int((below < q * below[-1]).sum()) for q in (cut, 1 - cut))
        else:
            first = last = length // 2
        start = max(0, first - MARGIN) // ALIGNMENT * ALIGNMENT
        box.append(slice(start, min(length, last + 1 + MARGIN)))
    return tuple(box)
