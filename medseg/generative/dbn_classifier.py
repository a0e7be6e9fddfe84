"""A deep belief network turned into a classifier and fine-tuned by back-propagation."""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import ModelError, ShapeError
from medseg.generative.dbn import Dbn
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient, split_items
from medseg.generative.layers import linear, reset
from medseg.generative.model import Items
from medseg.settings import settings


@settings
class ClassifierSettings:
    """How a deep belief network is made a classifier."""

    #: Number of classes.
    classes: int = Field(ge=2)
    #: Hidden layers start as those of the network, or at random.
    start: Literal["dbn", "random"] = "dbn"
    #: Steps and rates.
    fit: FitSettings = FitSettings(batch_size=64, learning_rate=3e-3)


class DbnClassifier(nn.Module):
    """Sigmoid layers that start as the upward pass of a network, and a softmax on top.

    Parameters
    ----------
    dbn : Dbn
        Fitted, also to items without a class. It stays as it is.
    settings : ClassifierSettings
        Classes, start and fit.

    References
    ----------
    Hinton and Salakhutdinov (2006), Reducing the dimensionality of data with neural networks.
    """

    def __init__(self, dbn: Dbn, settings: ClassifierSettings) -> None:
        super().__init__()
        self.settings = settings
        self.event_shape = dbn.event_shape
        self.standardiser = copy.deepcopy(dbn.standardiser)
        pretrained = dbn.upward_layers()
        layers: list[nn.Module] = []
        for weight, bias in pretrained:
            layer = linear(*weight.shape)
            layer.weight.data.copy_(weight.T)
            layer.bias.data.copy_(bias)
            layers += [layer, nn.Sigmoid()]
        self.hidden = nn.Sequential(*layers)
        self.last = linear(pretrained[-1][1].numel(), settings.classes)

    def forward(self, items: Items) -> Tensor:
        """Return the log odds of the classes up to a constant, (m, classes)."""
        if tuple(items.shape[1:]) != self.event_shape:
            raise ShapeError(
                f"Items must be (m, {', '.join(map(str, self.event_shape))}), but they are "
                f"{tuple(items.shape)}."
            )
        vectors = items.flatten(1)
        if self.standardiser is not None:
            vectors = self.standardiser(vectors)
        return self.last(self.hidden(vectors))

    @torch.no_grad()
    def classify(self, items: Items) -> Tensor:
        """Return the probability of each class, (m, classes)."""
        return self(items).softmax(1)

    def fit(self, items: Items, labels: Tensor, *, generator: torch.Generator) -> FitRecord:
        """Minimise the cross-entropy of integer ``labels`` (m,); the record is in nats per item.

        Raises
        ------
        ModelError
            Labels that are not one class number for each item.
        """
        classes = self.settings.classes
        whole = not (labels.is_floating_point() or labels.dtype == torch.bool)
        if labels.shape != (len(items),) or not whole or len(items) < 2:
            raise ModelError(
                f"Each of 2 items or more needs one whole number as label, but there are "
                f"{len(items)} items and labels {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ModelError(
                f"Labels must be 0 to {classes - 1}, but they range from {int(labels.min())} to "
                f"{int(labels.max())}.",
                hint="Number the classes from 0, or set classes.",
            )
        labels = labels.long()
        reset(self.last, generator=generator)
        if self.settings.start == "random":
            reset(self.hidden, generator=generator)
        fraction = self.settings.fit.validation_fraction
        train, held = split_items(len(items), fraction=fraction, generator=generator)
        train, held = train.to(items.device), held.to(items.device)

        def batch_loss(rows: Tensor, progress: float) -> Tensor:
            del progress
            return nn.functional.cross_entropy(self(items[rows]), labels[rows])

        @torch.no_grad()
        def validation() -> float:
            return float(nn.functional.cross_entropy(self(items[held]), labels[held]))

        return fit_by_gradient(
            self,
            batch_loss,
            validation if len(held) else None,
            rows=train,
            settings=self.settings.fit,
            generator=generator,
        )
