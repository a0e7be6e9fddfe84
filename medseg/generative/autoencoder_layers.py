"""The two halves of an autoencoder, tied or not, and what its regularisers measure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.generative.layers import linear, reset

Activation = Literal["linear", "relu", "elu", "tanh", "sigmoid"]

#: Activation, and its derivative as a function of its own output.
_ACTIVATIONS: dict[Activation, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda a: a, torch.ones_like),
    "relu": (torch.relu, lambda h: (h > 0).to(h)),
    "elu": (functional.elu, lambda h: 1 + h.clamp(max=0)),
    "tanh": (torch.tanh, lambda h: 1 - h.square()),
    "sigmoid": (torch.sigmoid, lambda h: h * (1 - h)),
}


class AutoencoderLayers(nn.Module):
    """Dense layers ``h_k = s(W_k h_(k-1) + b_k)`` up to the code, and back down to the items.

    Parameters
    ----------
    sizes : sequence of int
        Numbers in an item, in each layer, and in the code.
    activation : str
        ``s`` of the layers below the code, on the way up and down.
    code_activation : str
        ``s`` of the code.
    tied : bool
        The way down uses the transposed weights of the way up.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation,
        code_activation: Activation,
        tied: bool,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.up = nn.ModuleList([linear(a, b) for a, b in pairs])
        #: In the order of the way up: ``down[k]`` undoes ``up[k]``.
        self.down = nn.ModuleList([linear(b, a) for a, b in pairs])
        if tied:
            for layer in self.down:
                layer.register_parameter("weight", None)
        below: list[Activation] = [activation] * (len(pairs) - 1)
        self.names: list[Activation] = [*below, code_activation]

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Start all layers afresh."""
        reset(self, generator=generator)
        for layer in self.down:
            layer.get_parameter("bias").zero_()

    def step_up(self, h: Tensor, k: int) -> Tensor:
        """Return layer ``k`` of the way up before its activation."""
        return self.up[k](h)

    def step_down(self, h: Tensor, k: int) -> Tensor:
        """Return what is below layer ``k``, given that layer; of an item the logits or values."""
        below = functional.linear(h, self.weight_down(k), self.down[k].get_parameter("bias"))
        return below if k == 0 else self.activate(below, k - 1)

    def activate(self, a: Tensor, k: int) -> Tensor:
        """Return the activation of layer ``k`` of the way up."""
        return _ACTIVATIONS[self.names[k]][0](a)

    def weight_down(self, k: int) -> Tensor:
        """Return the weight that undoes layer ``k``."""
        own = cast(Tensor | None, self.down[k].weight)
        return self.up[k].get_parameter("weight").T if own is None else own

    def before_code(self, u: Tensor) -> Tensor:
        """Return the code of (m, d) before its activation."""
        last = len(self.up) - 1
        for k in range(last):
            u = self.activate(self.step_up(u, k), k)
        return self.step_up(u, last)

    def encode(self, u: Tensor) -> Tensor:
        """Return the code of (m, d)."""
        return self.activate(self.before_code(u), len(self.up) - 1)

    def decode(self, code: Tensor) -> Tensor:
        """Return the items of codes, before the sigmoid if they have one."""
        for k in reversed(range(len(self.up))):
            code = self.step_down(code, k)
        return code

    def contraction(self, u: Tensor) -> Tensor:
        """Return the squared Frobenius norm of the Jacobian of the code, (m,).

        ``||dh/dx||_F^2``, by the chain rule from the code down; the last factor ``W_1`` enters as
        ``W_1 W_1'``, so that the cost does not grow with the size of an item.

        References
        ----------
        Rifai et al. (2011), Contractive auto-encoders: explicit invariance during feature
        extraction, equations 1 and 3.
        """
        outputs = []
        for k in range(len(self.up)):
            u = self.activate(self.step_up(u, k), k)
            outputs.append(u)
        slopes = [_ACTIVATIONS[name][1](h) for name, h in zip(self.names, outputs, strict=True)]
        jacobian = torch.diag_embed(slopes[-1])
        for k in reversed(range(1, len(self.up))):
            jacobian = (jacobian @ self.up[k].get_parameter("weight")) * slopes[k - 1][:, None]
        first = self.up[0].get_parameter("weight")
        return ((jacobian @ (first @ first.T)) * jacobian).sum((1, 2))


def code_size(code: Tensor, weight_down: Tensor) -> Tensor:
    """Return ``|h_j|`` times the length of what unit j writes into the layer below, (m, k).

    The product does not change when a unit is made smaller and its weights larger, by which the
    penalty ``sum |h_j|`` alone would be escaped; it is that penalty for weights of length 1.
    """
    return code.abs() * weight_down.norm(dim=0)


def code_entropy(size: Tensor) -> Tensor:
    """Return the entropy of the units' shares in each code in nats, (m,): 0 if one unit has all.

    ``H = -sum_j p_j log p_j`` with ``p_j = |h_j| / sum |h|``; its exponential is the number of
    units in use.
    """
    share = size / size.sum(1, keepdim=True).clamp(min=1e-12)
    # Not of share itself: the slope of p log p has no limit at 0.
    return -(share * share.clamp(min=1e-12).log()).sum(1)
