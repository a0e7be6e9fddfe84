"""A score of a network while it is trained, on cases it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from medseg.data.training_set import TrainingCase
from medseg.errors import DataError
from medseg.inference.posterior import Head, predict_prepared
from medseg.inference.settings import PredictSettings
from medseg.metrics.overlap import dice


def mean_dice_of(cases: Sequence[TrainingCase], *, head: Head) -> Callable[[nn.Module], float]:
    """Return a function that gives a network's mean DSC over cases and their known regions.

    Parameters
    ----------
    cases : sequence of TrainingCase
        At least one with a known region.
    head : Head
        How to read the logits.

    Raises
    ------
    DataError
        No case has a known region.
    """
    if not any(bool(case.known[int(case.has_background) :].any()) for case in cases):
        raise DataError(
            f"Validation needs a case with a known region, but none of the {len(cases)} has one.",
            hint="Train without validation, or define the regions of this source.",
        )

    def score(network: nn.Module) -> float:
        device = str(next(network.parameters()).device)
        settings = PredictSettings(samples=1, device=device)
        values = []
        for case in cases:
            mask = predict_prepared(network, case.image, head=head, settings=settings).mask
            first = int(case.has_background)
            for channel in torch.nonzero(case.known[first:]).flatten().tolist():
                truth = case.regions[channel].numpy() > 0.5
                values.append(dice((mask[channel] & case.brain).numpy(), truth))
        return sum(values) / len(values)

    return score
