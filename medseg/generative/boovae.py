"""A variational autoencoder that takes new kinds of items without the old ones."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medseg.errors import ModelError
from medseg.generative.fitting import FitRecord, FitSettings, split_items
from medseg.generative.layers import join, rows_of
from medseg.generative.model import Conditions, Items
from medseg.generative.noise import draw_normal
from medseg.generative.vae import Vae, VaeSettings, log_normal
from medseg.settings import settings

# Items whose codes stand for the aggregated posterior, and those a new part may start from.
_MOST_CODES = 1024
_STARTS = 32
# Steps and rate of a pseudo-input, in units of standardised items, and iterations for the weights.
_SEARCH_STEPS, _SEARCH_RATE = 40, 0.03
_WEIGHT_ITERATIONS = 50
# Below every weight that matters, so that a part that is not grown yet has a logarithm.
_LEAST_WEIGHT = 1e-30


@settings
class BooVaeSettings(VaeSettings):
    """Size of an autoencoder whose prior is grown, and how it is fitted."""

    #: Parts q(z | u_k) of the prior that are grown for each task, in the order of the tasks; the
    #: first task also has N(0, I), from which its prior grows.
    components: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(8,), min_length=1)
    #: Share of the steps before the first part is grown; the others follow at equal distances.
    first_share: float = Field(default=0.5, gt=0, lt=1)
    #: Weight of the old tasks' KL while a new one is learned. At 1 a nat lost on an old item counts
    #: as much as one gained on a new item.
    hold: float = Field(default=1.0, ge=0)


class BooVae(Vae):
    """Variational autoencoder with a prior ``p(z) = w_0 N(0, I) + sum_k w_k q(z | u_k)``.

    Each part is the posterior of a trainable pseudo-input u_k. Parts are added one by one: with
    the networks fixed, u_k maximises the mean over the items of
    ``E_q(z|x) log((1 - a) p(z) + a q(z | u))``, the ELBO's own share in the prior, so that the part
    goes where the aggregated posterior ``mean_x q(z | x)`` has more mass than the mixture; then
    all weights are refitted by EM, and the networks are fitted under the new prior.

    :meth:`extend` takes items of a new task without those of the old ones. The parts stored so far
    keep their place, ``(T - 1) / T`` of the weight at task T, and hold the networks by

    ``E_p(z) KL(p(x|z) || p'(x|z)) + E_p(z) p(x|z) KL(q(z|x) || q'(z|x))``,

    p before and p' after. The first term alone bounds ``KL(p(x) || p'(x))`` at equal weights, so
    that what an old item loses in nats is bounded by what is penalised, and by log(T / (T - 1)).

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : BooVaeSettings
        Sizes, likelihood, parts and fit.

    References
    ----------
    Egorov, Kuzina and Burnaev (2021), BooVAE: boosting approach for continual learning of VAE,
    sections 3 and 4. There a part minimises the reverse KL, which places parts on outliers of
    items with heavy tails; here it is sought by the forward one, as in Li and Barron (1999),
    Mixture density estimation, section 2. There the KL is taken at the pseudo-inputs only.
    """

    kind = "boovae"
    settings_type = BooVaeSettings
    settings: BooVaeSettings
    part_mean: Tensor
    part_log_std: Tensor
    weight: Tensor
    pseudo: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: BooVaeSettings) -> None:
        super().__init__(event_shape, settings)
        parts, latent = sum(settings.components), settings.latent
        # Row 0 is N(0, I); parts that are not grown yet have no weight.
        self.register_buffer("part_mean", torch.zeros(1 + parts, latent))
        self.register_buffer("part_log_std", torch.zeros(1 + parts, latent))
        self.register_buffer("weight", torch.eye(1 + parts)[0])
        self.register_buffer("pseudo", torch.zeros(parts, self.size + self.condition_size))

    def extend(
        self,
        items: Items,
        *,
        generator: torch.Generator,
        condition: Conditions | None = None,
        components: int | None = None,
    ) -> "tuple[BooVae, FitRecord]":
        """Return the model after one more task, and the record of its fit; this one stays.

        Parameters
        ----------
        items : Tensor, shape (m, *event_shape)
            Of the new task, in the units of the old ones.
        generator : torch.Generator
            Draws batches, codes and items of the old tasks.
        condition : Tensor, shape (m, condition_size), optional
        components : int, optional
            Parts for the new task, 1 or more; by default as many as for the last.

        Raises
        ------
        ModelError
            As by :meth:`fit`, the model was not fitted, or the new task is to have no part.

        References
        ----------
        Egorov, Kuzina and Burnaev (2021), section 4; see the class for what differs.
        """
        if not bool(self.pseudo.any()):
            raise ModelError(
                f"A {self.kind} is extended after its first task, but none of its "
                f"{len(self.pseudo)} parts is grown.",
                hint="Call fit on the first task's items.",
            )
        added = self.settings.components[-1] if components is None else components
        if added < 1:
            raise ModelError(
                f"A task has one part of the prior or more, but components is {added}.",
                hint="Leave components out: as many as for the last task are taken.",
            )
        chosen = replace(self.settings, components=(*self.settings.components, added))
        made = BooVae(self.event_shape, chosen).to(items.device)
        state, known = self.state_dict(), made.state_dict()
        for name, value in state.items():
            # Parts come after those of the old tasks.
            known[name].view(-1)[: value.numel()].copy_(value.view(-1))
        made.load_state_dict(known)
        made.weight[: len(self.weight)] *= 1 - 1 / len(chosen.components)
        old = copy.deepcopy(self).requires_grad_(False).eval()
        record = made._checked_fit(
            partial(made._fit_more, old=old), items, generator=generator, condition=condition
        )
        return made, record

    def _reset(self, generator: torch.Generator) -> None:
        super()._reset(generator)
        if hasattr(self, "weight"):
            self.weight.zero_()[0] = 1.0
            self.part_mean.zero_()
            self.part_log_std.zero_()
            self.pseudo.zero_()

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        self._reset(generator)
        u, train, held = self._standardised_rows(items, generator=generator)
        return self._boost(u, condition, train, held, generator=generator, old=None)

    def _fit_more(
        self, items: Tensor, *, old: "BooVae", generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        """Fit to the items of a new task, in the old units."""
        u = self.standardiser(items.flatten(1))
        fraction = self.settings.fit.validation_fraction
        train, held = split_items(len(u), fraction=fraction, generator=generator)
        train, held = train.to(u.device), held.to(u.device)
        return self._boost(u, condition, train, held, generator=generator, old=old)

    def _boost(
        self,
        u: Tensor,
        condition: Tensor | None,
        train: Tensor,
        held: Tensor,
        *,
        generator: torch.Generator,
        old: "BooVae | None",
    ) -> FitRecord:
        """Fit the networks and grow the parts of the last task, in turns."""
        fit, parts = self.settings.fit, len(self.weight)
        first = 0 if old is None else len(old.weight)
        grown = range(max(first, 1), parts)
        steps = min(max(fit.epochs * len(train) // fit.batch_size, 1), fit.max_steps)
        share = self.settings.first_share
        raise_elbo = partial(
            self._raise_elbo,
            u,
            condition,
            train,
            held,
            generator=generator,
            penalty=None if old is None else partial(self._drift, old),
        )
        records = [raise_elbo(fit=_shortened(fit, steps * share))]
        # Parts go by the codes of all items, as far as that is affordable.
        rows = train[torch.randperm(len(train), generator=generator).to(train.device)]
        rows = rows[:_MOST_CODES]
        for part in grown:
            self._grow(part, first, u[rows], rows_of(condition, rows), generator=generator)
            short = _shortened(fit, steps * (1 - share) / len(grown))
            records.append(raise_elbo(fit=short, warm_up=0.0))
            # The networks have moved, and the parts of this task with them.
            self._place(max(first, 1), part + 1)
            self._weigh(first, part + 1, u[rows], rows_of(condition, rows), generator=generator)
        last = replace(records[-1], steps=sum(record.steps for record in records))
        return last.shifted(float(self.standardiser.log_det))

    def _drift(self, old: "BooVae", n: int, generator: torch.Generator) -> Tensor:
        """Return what ``n`` items drawn from the old model lose, in nats: see the class."""
        with torch.no_grad():
            z = old._draw_codes(n, generator=generator)
            condition = old._draw_conditions(n, generator=generator)
            u = old.decoder.draw(z, condition, generator=generator)
            before = old.decoder.log_prob(u, z, condition)
            mean, log_std = old.encoder(u, condition)
        lost = before - self.decoder.log_prob(u, z, condition)
        new_mean, new_log_std = self.encoder(u, condition)
        ratio = 2 * (log_std - new_log_std)
        away = ((mean - new_mean) * (-new_log_std).exp()).square()
        lost = lost + 0.5 * (away + ratio.exp() - 1 - ratio).sum(1)
        # As many old tasks as there are, each as important as the new one.
        return self.settings.hold * len(old.settings.components) * lost.mean()

    def _grow(
        self,
        part: int,
        first: int,
        u: Tensor,
        condition: Tensor | None,
        *,
        generator: torch.Generator,
    ) -> None:
        """Find the pseudo-input of a part, then its place and the weights of its task.

        The search moves the item alone and keeps the condition of the one it started from: a value
        in between would be that of no layer.
        """
        with torch.no_grad():
            mean, log_std = self.encoder(u, condition)
            z = mean + log_std.exp() * self._noise(len(u), like=u, generator=generator)
            before = self._log_prior(z)
            # The items' own codes, of which the best one is where the search starts.
            gains = self._gain(z, before, mean[:_STARTS], log_std[:_STARTS], part - first)
        start = join(u, condition)[int(gains.argmax())]
        free, told = start[: self.size].clone().requires_grad_(), start[self.size :]
        optimiser = torch.optim.Adam([free], lr=_SEARCH_RATE)
        for _ in range(_SEARCH_STEPS):
            found = self._posteriors(torch.cat([free, told])[None])
            (gradient,) = torch.autograd.grad(-self._gain(z, before, *found, part - first)[0], free)
            free.grad = gradient
            optimiser.step()
        with torch.no_grad():
            self.pseudo[part - 1].copy_(torch.cat([free, told]))
        self._place(part, part + 1)
        self._weigh(first, part + 1, u, condition, generator=generator)

    def _gain(
        self, z: Tensor, before: Tensor, mean: Tensor, log_std: Tensor, others: int
    ) -> Tensor:
        """Return what each of k parts adds to the mean log prior of codes z (m, latent), (k,)."""
        inside = log_normal(z[:, None], mean, log_std)
        share = 1 / (others + 2)
        both = torch.logaddexp(before[:, None] + math.log(1 - share), inside + math.log(share))
        return (both - before[:, None]).mean(0)

    @torch.no_grad()
    def _place(self, start: int, stop: int) -> None:
        """Put parts ``start`` to ``stop`` where the encoder puts their pseudo-inputs."""
        mean, log_std = self._posteriors(self.pseudo[start - 1 : stop - 1])
        self.part_mean[start:stop] = mean
        self.part_log_std[start:stop] = log_std

    @torch.no_grad()
    def _weigh(
        self,
        first: int,
        stop: int,
        u: Tensor,
        condition: Tensor | None,
        *,
        generator: torch.Generator,
    ) -> None:
        """Refit the weights of parts ``first`` to ``stop`` by EM; the others keep theirs.

        Of EM for mixtures only the weights' step (Dempster, Laird and Rubin 1977, section 4.3).
        """
        mean, log_std = self.encoder(u, condition)
        z = mean + log_std.exp() * self._noise(len(u), like=u, generator=generator)
        inside = log_normal(z[:, None], self.part_mean[:stop], self.part_log_std[:stop])
        total = 1 - float(self.weight[:first].sum())
        self.weight[first:stop] = total / (stop - first)
        for _ in range(_WEIGHT_ITERATIONS):
            shares = (inside + self._log_weight()[:stop]).softmax(1)[:, first:].sum(0)
            self.weight[first:stop] = total * shares / shares.sum().clamp(min=_LEAST_WEIGHT)

    def _posteriors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return q(z | u) of pseudo-inputs (k, size + condition_size)."""
        condition = inputs[:, self.size :] if self.condition_size else None
        return self.encoder(inputs[:, : self.size], condition)

    def _log_weight(self) -> Tensor:
        return self.weight.clamp(min=_LEAST_WEIGHT).log()

    def _log_prior(self, z: Tensor) -> Tensor:
        inside = log_normal(z[:, None], self.part_mean, self.part_log_std)
        return (inside + self._log_weight()).logsumexp(1)

    def _divergence(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        return log_normal(z, mean, log_std) - self._log_prior(z)

    def _draw_codes(self, n: int, *, generator: torch.Generator) -> Tensor:
        parts = self._draw_parts(self.weight, n, generator=generator)
        noise = draw_normal((n, self.settings.latent), like=self.part_mean, generator=generator)
        return self.part_mean[parts] + self.part_log_std[parts].exp() * noise

    def _draw_conditions(self, n: int, *, generator: torch.Generator) -> Tensor | None:
        """Return conditions of the tasks so far, which their pseudo-inputs remember."""
        if not self.condition_size:
            return None
        rows = self._draw_parts(self.weight[1:], n, generator=generator)
        return self.pseudo[rows, self.size :]

    def _draw_parts(self, weight: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
        chances = weight.clamp(min=_LEAST_WEIGHT).to(generator.device)
        drawn = torch.multinomial(chances, n, replacement=True, generator=generator)
        return drawn.to(self.weight.device)


def _shortened(fit: FitSettings, steps: float) -> FitSettings:
    return replace(fit, max_steps=max(round(steps), 1))
