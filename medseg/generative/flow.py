"""A small normalising flow: an exact density for items of a few hundred numbers."""

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg.generative.base import CAPABILITIES, GenerativeBase
from medseg.generative.fitting import FitRecord, FitSettings, fit_by_gradient
from medseg.generative.layers import linear, reset
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import LOG_TWO_PI, draw_normal
from medseg.generative.standardise import Standardisation, Standardiser, split_and_standardise
from medseg.seeding import torch_generator
from medseg.settings import settings

# Size of the last layers at the start, relative to the usual one: the start is nearly the Gaussian.
_START_GAIN = 0.1
# Most that one step may shrink or stretch, as a logarithm: no item, however far, overflows.
_MOST_LOG_SCALE = 3.0


@settings
class FlowSettings:
    """Size of a normalising flow, and how it is fitted."""

    #: Autoregressive steps, one after the other.
    steps: int = Field(default=5, ge=1)
    #: Width of the two hidden layers of each step.
    hidden: int = Field(default=64, ge=1)
    #: Blocks the numbers of an item are parted into; each is shifted and scaled by those before.
    #: As many blocks as numbers: masked autoregressive. Two: affine coupling. Sampling costs one
    #: pass a block.
    blocks: int = Field(default=32, ge=2)
    #: What is done to the items first; whitened, it starts as the full Gaussian.
    standardise: Standardisation = "whiten"
    #: Numbers in the condition of an item; 0 for none.
    condition_size: int = Field(default=0, ge=0)
    #: Steps and rates.
    fit: FitSettings = FitSettings(learning_rate=2e-3)


class AutoregressiveStep(nn.Module):
    """``u_i = (x_i - shift_i) exp(-log_scale_i)``, both from the blocks before that of i.

    Parameters
    ----------
    block : Tensor, shape (d,), int64
        Block of each number, 0 first.
    settings : FlowSettings
        Width and size of the condition.

    References
    ----------
    Papamakarios, Pavlakou and Murray (2017), Masked autoregressive flow, equations 3 to 5.
    Germain, Gregor, Murray and Larochelle (2015), MADE, equations 12 to 14: the masks.
    """

    block: Tensor

    def __init__(self, block: Tensor, settings: FlowSettings) -> None:
        super().__init__()
        d, width = len(block), settings.hidden
        self.layers = nn.ModuleList(
            [
                linear(d + settings.condition_size, width),
                linear(width, width),
                linear(width, 2 * d),
            ]
        )
        # The last block of which a hidden unit knows; a condition is the block -1.
        lowest = -1 if settings.condition_size else 0
        knows = lowest + torch.arange(width) * max(int(block.max()) - lowest, 1) // width
        inputs = torch.cat([block, torch.full((settings.condition_size,), -1)])
        outputs = block.repeat(2)
        self.register_buffer("block", block, persistent=False)
        pairs = [(inputs, knows, False), (knows, knows, False), (knows, outputs, True)]
        for i, (before, after, strict) in enumerate(pairs):
            seen = before < after[:, None] if strict else before <= after[:, None]
            self.register_buffer(f"mask_{i}", seen.float(), persistent=False)

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``u`` and log |du / dx|, (m, d) and (m,)."""
        shift, log_scale = self._affine(x, condition)
        return (x - shift) * (-log_scale).exp(), -log_scale.sum(1)

    def inverse(self, u: Tensor, condition: Tensor | None) -> Tensor:
        """Return x for ``u``, both (m, d), one pass a block."""
        x = torch.zeros_like(u)
        for block in range(int(self.block.max()) + 1):
            shift, log_scale = self._affine(x, condition)
            x = torch.where(self.block == block, u * log_scale.exp() + shift, x)
        return x

    def _affine(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = x if condition is None else torch.cat([x, condition.to(x)], dim=1)
        for i, layer in enumerate(self.layers):
            mask = self.get_buffer(f"mask_{i}")
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            hidden = nn.functional.linear(hidden, weight * mask, bias)
            hidden = nn.functional.elu(hidden) if i < 2 else hidden
        shift, raw = hidden.chunk(2, dim=1)
        return shift, _MOST_LOG_SCALE * torch.tanh(raw / _MOST_LOG_SCALE)


class Flow(GenerativeBase):
    """A normal variable bent by invertible steps, hence with an exact density.

    ``log p(x) = log N(f(x); 0, I) + log |det df/dx|``. Its code ``f(x)`` has as many numbers as the
    item, and the item back without loss.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : FlowSettings
        Sizes and fit.

    References
    ----------
    Dinh, Sohl-Dickstein and Bengio (2017), Density estimation using Real NVP, equations 2 and 3.
    """

    kind = "flow"
    settings_type = FlowSettings
    provides = CAPABILITIES
    is_exact = True
    is_normalised = True
    settings: FlowSettings

    def __init__(self, event_shape: tuple[int, ...], settings: FlowSettings) -> None:
        super().__init__(event_shape, settings)
        self.standardiser = Standardiser(self.size)
        # Part of the architecture, not of the fit: the same orders for all models of one size.
        orders = torch_generator(0, "flow", self.size)
        blocks = min(settings.blocks, self.size)
        made: list[AutoregressiveStep] = []
        order = torch.arange(self.size)
        for i in range(settings.steps):
            # Every second step reads the items backwards, so that each number is told of all.
            order = order.flip(0) if i % 2 else torch.randperm(self.size, generator=orders)
            made.append(AutoregressiveStep(order.argsort() * blocks // self.size, settings))
        self.steps = nn.ModuleList(made)
        self._reset(torch_generator(0, "flow"))

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        options = self.settings
        self._reset(generator)
        u, train, held = split_and_standardise(
            items.flatten(1),
            self.standardiser,
            kind=options.standardise,
            fraction=options.fit.validation_fraction,
            generator=generator,
        )

        def loss(rows: Tensor) -> Tensor:
            told = None if condition is None else condition[rows]
            return -self._log_density(u[rows], told).mean()

        @torch.no_grad()
        def validation() -> float:
            return float(loss(held))

        record = fit_by_gradient(
            self,
            lambda rows, _: loss(rows),
            validation if len(held) else None,
            rows=train,
            settings=options.fit,
            generator=generator,
        )
        return record.shifted(float(self.standardiser.log_det))

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return log p in nats, exactly, (m,)."""
        # Half precision would cost more nats than priors differ by, and is slow on most CPUs.
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self.standardiser(self.vectors(items, condition))
            return self._log_density(u, condition) + self.standardiser.log_det

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items: decoded normal codes."""
        like = self.standardiser.offset
        codes = draw_normal((n, self.size), like=like, generator=generator)
        return self.decode(codes, condition=condition)

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the normal variable behind each item, (m, size)."""
        u = self.standardiser(self.vectors(items, condition))
        return self._to_normal(u, condition)[0]

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the item of each code, (m, *event_shape)."""
        self.check_codes(codes, self.size)
        self.check_condition(len(codes), condition)
        for step in reversed(self.steps):
            codes = step.inverse(codes, condition)  # type: ignore[operator]
        return self.standardiser.inverse(codes).reshape(len(codes), *self.event_shape)

    def _to_normal(self, u: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        log_det = u.new_zeros(len(u))
        for step in self.steps:
            u, change = step(u, condition)
            log_det = log_det + change
        return u, log_det

    def _log_density(self, u: Tensor, condition: Tensor | None) -> Tensor:
        normal, log_det = self._to_normal(u, condition)
        return log_det - 0.5 * (normal.square().sum(1) + self.size * LOG_TWO_PI)

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        reset(self, generator=generator)
        for step in self.steps:
            step.get_parameter("layers.2.weight").mul_(_START_GAIN)
