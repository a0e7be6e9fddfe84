"""Inpainting and repair: the most probable code of what was observed, decoded.

``z^ = argmin_z  -log p(x_observed | g(z)) - log p(z)``, ``x^ = g(z^)``, for any model that decodes.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.base import GenerativeBase
from medseg.generative.latent_convolution import LatentConvolution
from medseg.generative.model import Codes, Items, PerItem
from medseg.generative.noise import draw_normal
from medseg.generative.pca import Ppca
from medseg.generative.vae import Vae
from medseg.settings import settings

#: Kinds whose codes are standard normal by construction.
STANDARD_CODES = ("ppca", "vae", "conv_vae", "flow")
# Least deviation of a fitted code, over the largest: a code that never varied still may.
_LEAST_STD = 1e-3


@settings
class RestorationSettings:
    """How a code is sought."""

    #: Standard deviation of an observed number around the decoded one; None takes the likelihood
    #: of the model (``ppca``, ``vae``, ``conv_vae``, ``lcm``).
    noise_std: float | None = Field(default=None, gt=0)
    #: Deviations beyond which a number counts linearly (Huber), for artefacts that no mask marks;
    #: None counts all by their squares. Needs ``noise_std``.
    robust_beyond: float | None = Field(default=None, gt=0)
    #: Starts: the code of the item with its gaps filled, the prior's mean, then random codes. The
    #: best end is kept, item by item.
    starts: int = Field(default=2, ge=1)
    #: Iterations of L-BFGS from each start.
    iterations: int = Field(default=200, ge=1)


@dataclass(frozen=True, eq=False)
class CodePrior:
    """Independent normal numbers of a code.

    Parameters
    ----------
    mean, std : Tensor, shape (k,)
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, codes: Codes) -> "CodePrior":
        """Return the normal with the moments of ``codes``, such as those of the training items."""
        std = codes.std(0)
        return cls(codes.mean(0), std.clamp(min=_LEAST_STD * float(std.max().clamp(min=1e-12))))

    def nats(self, codes: Codes) -> PerItem:
        """Return -log p up to a constant, (m,)."""
        return 0.5 * ((codes - self.mean) / self.std).square().sum(1)


@dataclass(frozen=True, eq=False)
class Restored:
    """What a model makes of incomplete items.

    Parameters
    ----------
    items : Tensor, shape (m, *event_shape)
        Decoded everywhere, also where something was observed.
    filled : Tensor, shape (m, *event_shape)
        As observed, decoded in the gaps.
    residual : Tensor, shape (m, *event_shape)
        Given minus decoded, also in the gaps: an anomaly map.
    codes : Tensor, shape (m, k)
    nats : Tensor, shape (m,)
        Data term and prior term, up to a constant.
    """

    items: Items
    filled: Items
    residual: Items
    codes: Codes
    nats: PerItem


def restore(
    model: GenerativeBase,
    items: Items,
    observed: Tensor,
    *,
    settings: RestorationSettings | None = None,
    prior: CodePrior | None = None,
    generator: torch.Generator,
) -> Restored:
    """Return items with their gaps filled by the most probable code.

    Parameters
    ----------
    model : GenerativeBase
        Fitted; must decode. Its weights stay as they are.
    items : Tensor, shape (m, *event_shape)
        What stands in the gaps does not matter.
    observed : Tensor, shape (m, *event_shape), bool
        False in gaps and where an artefact is marked.
    settings : RestorationSettings, optional
    prior : CodePrior, optional
        Of the codes; by default N(0, I) for kinds whose codes are that by construction, that of the
        training items' codes for a LatentConvolution, and needed for all others.
    generator : torch.Generator
        Of random starts.

    Raises
    ------
    ShapeError
        Items or mask of another shape.
    ModelError
        The model cannot decode; an item has nothing observed or a number that is not finite; or
        noise or prior are not known.

    References
    ----------
    Bora, Jalal, Price and Dimakis (2017), Compressed sensing using generative models, equation 3.
    For a linear decoder the result is the conditional mean of the Gaussian (Tipping and Bishop
    1999), in closed form.
    """
    chosen = settings or RestorationSettings()
    items = items.detach().float()
    _check(model, items, observed)
    # A copy in double precision: in single, the line search stops a thousandth from the minimum.
    model = copy.deepcopy(model).double().requires_grad_(False)
    # Gaps take part in nothing, whatever stands in them.
    known = torch.where(observed, items, torch.zeros_like(items)).double()
    prior = _doubled(prior or _prior_of(model, known))
    data_nats = _data_term(model, known, observed, chosen)

    def objective(codes: Tensor) -> Tensor:
        return data_nats(codes) + prior.nats(codes)

    codes, nats = _best(model, known, observed, objective, prior, chosen, generator)
    with torch.no_grad():
        decoded = model.decode(codes).float()
    return Restored(
        items=decoded,
        filled=torch.where(observed, items, decoded),
        residual=items - decoded,
        codes=codes.float(),
        nats=nats.float(),
    )


def _best(
    model: GenerativeBase,
    known: Tensor,
    observed: Tensor,
    objective: Callable[[Tensor], Tensor],
    prior: CodePrior,
    chosen: RestorationSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the codes with the fewest nats over all starts, and those nats."""
    best: tuple[Tensor, Tensor] | None = None
    for start in _starts(model, known, observed, prior, n=chosen.starts, generator=generator):
        codes = _descend(objective, start, prior, iterations=chosen.iterations)
        with torch.no_grad():
            nats = objective(codes)
        if best is None:
            best = codes, nats
            continue
        better = nats < best[1]
        best = torch.where(better[:, None], codes, best[0]), torch.minimum(nats, best[1])
    if best is None or not bool(best[1].isfinite().all()):
        raise ModelError(
            f"The search for codes of this {model.kind} must end with finite numbers, but did not.",
            hint="Look for outliers among the items, or give a larger noise_std.",
        )
    return best


def _descend(
    objective: Callable[[Tensor], Tensor], start: Tensor, prior: CodePrior, *, iterations: int
) -> Tensor:
    # In units of the prior: for a linear decoder all directions are then about equally steep.
    free = ((start - prior.mean) / prior.std).detach().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [free],
        max_iter=iterations,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(prior.mean + prior.std * free).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    return (prior.mean + prior.std * free).detach()


def _starts(
    model: GenerativeBase,
    known: Tensor,
    observed: Tensor,
    prior: CodePrior,
    *,
    n: int,
    generator: torch.Generator,
) -> list[Tensor]:
    size = (len(known), len(prior.mean))
    middle = prior.mean.expand(size)
    starts = [middle]
    if "encode" in model.provides:
        with torch.no_grad():
            filled = torch.where(observed, known, model.decode(middle))
            starts = [model.encode(filled), middle]
    while len(starts) < n:
        draw = draw_normal(size, like=prior.mean, generator=generator)
        starts.append(prior.mean + prior.std * draw)
    return starts[:n]


def _data_term(
    model: GenerativeBase, known: Tensor, observed: Tensor, chosen: RestorationSettings
) -> Callable[[Tensor], Tensor]:
    """Return the function from codes to -log p(observed | code) up to a constant, (m,)."""
    std, beyond = chosen.noise_std, chosen.robust_beyond
    if beyond is not None and std is None:
        raise ModelError(
            f"A robust restoration (robust_beyond = {beyond}) counts in deviations of the noise, "
            "but noise_std is not given.",
            hint="Give noise_std in the units of the items.",
        )
    if std is None and isinstance(model, Vae):
        return _likelihood(model, known, observed)
    if std is None and isinstance(model, Ppca | LatentConvolution):
        std = float(model.noise.sqrt())
    if std is None:
        raise ModelError(
            f"A model of kind {model.kind!r} does not say how far items lie from decoded codes, "
            "and noise_std is not given.",
            hint="Give noise_std, such as the rms error of reconstructed items.",
        )

    def nats(codes: Tensor) -> Tensor:
        away = (known - model.decode(codes)) / std
        cost = 0.5 * away.square()
        if beyond is not None:
            cost = torch.where(away.abs() <= beyond, cost, beyond * (away.abs() - 0.5 * beyond))
        return (cost * observed).flatten(1).sum(1)

    return nats


def _likelihood(model: Vae, known: Tensor, observed: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the data term of a VAE's own likelihood, with its deviations."""
    u = model.standardiser(model.vectors(known))
    seen = observed.flatten(1)

    def nats(codes: Tensor) -> Tensor:
        mean, log_std = model.decoder(codes, None)
        if model.decoder.coins:
            cost = torch.nn.functional.softplus(mean) - u * mean
        else:
            cost = 0.5 * ((u - mean) * (-log_std).exp()).square() + log_std
        return (cost * seen).sum(1)

    return nats


def _prior_of(model: GenerativeBase, items: Tensor) -> CodePrior:
    if isinstance(model, LatentConvolution):
        return CodePrior(model.code_mean, model.code_std)
    if model.kind not in STANDARD_CODES:
        raise ModelError(
            f"The codes of kind {model.kind!r} have no distribution of their own, and no prior is "
            "given.",
            hint="Give CodePrior.of(model.encode(training_items)).",
        )
    with torch.no_grad():
        # As many numbers as a code has; the items decide nothing else here.
        size = model.encode(items[:1]).shape[1]
    return CodePrior(items.new_zeros(size), items.new_ones(size))


def _doubled(prior: CodePrior) -> CodePrior:
    return CodePrior(prior.mean.detach().double(), prior.std.detach().double())


def _check(model: GenerativeBase, items: Tensor, observed: Tensor) -> None:
    model.check_items(items)
    if "decode" not in model.provides:
        raise model._lacks("decode")
    if model.condition_size:
        raise ModelError(
            f"A restoration has no condition to give, but this {model.kind} wants "
            f"{model.condition_size} numbers.",
            hint="Fit the model without a condition.",
        )
    if observed.dtype != torch.bool or observed.shape != items.shape:
        raise ShapeError(
            f"What is observed must be a bool tensor of shape {tuple(items.shape)}, but it is "
            f"{observed.dtype} of shape {tuple(observed.shape)}."
        )
    empty = int((~observed.flatten(1).any(1)).sum())
    odd = int((~(items.isfinite() | ~observed).flatten(1).all(1)).sum())
    if empty or odd:
        raise ModelError(
            f"Each item must have something observed, all finite, but of {len(items)} items "
            f"{empty} have nothing and {odd} have NaN or Inf.",
            hint="Mark NaN and Inf as not observed, and leave out items without anything.",
        )
