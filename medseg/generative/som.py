"""A self-organising map, its two kinds of pictures, and the mixture around its codebook."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg.errors import ModelError
from medseg.generative.base import CAPABILITIES, GenerativeBase
from medseg.generative.codebook import (
    CompetitionSettings,
    grid_distances,
    grid_positions,
    squared_distances,
    train_codebook,
)
from medseg.generative.fitting import FitRecord
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import LOG_TWO_PI, draw_normal
from medseg.generative.standardise import Standardisation, Standardiser
from medseg.settings import settings

# Nodes of a grid that touch, diagonals included, are at most this far apart.
_ADJACENT = 2.0 + 1e-3


@settings
class SomSettings:
    """Size of the map, how it competes, and the mixture around it."""

    #: Rows of the grid.
    size_x: int = Field(default=6, ge=1)
    #: Columns of the grid.
    size_y: int = Field(default=6, ge=1)
    #: Who learns from an item.
    competition: CompetitionSettings = CompetitionSettings()
    #: What is done to the items first: the map follows the directions of largest spread in these
    #: units.
    standardise: Standardisation = "scale"
    #: Shape of the Gaussian around a node: round, or one full shape for all; each has its own size.
    shape: Literal["round", "full"] = "full"
    #: Least deviation of those Gaussians, relative to that of the items.
    std_floor: float = Field(default=0.02, gt=0)
    #: Items that every node is given beside its own, spread as all items are around their mean:
    #: without them, a node with one item would have no size.
    prior_items: float = Field(default=1.0, gt=0)
    #: Steps of expectation maximisation of the mixture.
    mixture_steps: int = Field(default=50, ge=1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size_x, self.size_y


class Som(GenerativeBase):
    """Self-organising map: a grid of nodes in the space of the items that keeps neighbours close.

    The codebook also carries a density, ``p(x) = sum_k pi_k N(x; w_k, s_k^2 C)`` with the nodes as
    centres, whose weights, sizes and common shape are fitted by expectation maximisation with the
    centres held. It is a normalised density: the bound is exact.

    A code is the place (a, b) of the winner on the grid; decoding takes the nearest node, and a
    reconstruction is the winner.

    References
    ----------
    Kohonen (2001), Self-organizing maps, third edition.
    """

    kind = "som"
    settings_type = SomSettings
    provides = CAPABILITIES
    is_exact = True
    is_normalised = True
    settings: SomSettings
    codebook: Tensor
    log_weights: Tensor
    log_std: Tensor
    shape_factor: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: SomSettings) -> None:
        super().__init__(event_shape, settings)
        count = math.prod(settings.grid)
        self.standardiser = Standardiser(self.size)
        self.register_buffer("codebook", torch.zeros(count, self.size))
        self.register_buffer("log_weights", torch.full((count,), -math.log(count)))
        self.register_buffer("log_std", torch.zeros(count))
        # Lower triangular L with C = L L', of determinant 1, so that s_k alone is the size.
        rank = self.size if settings.shape == "full" else 1
        self.register_buffer("shape_factor", torch.eye(rank))

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        vectors = items.flatten(1)
        self.standardiser.fit(vectors, self.settings.standardise)
        u = self.standardiser(vectors)
        trained = train_codebook(
            u, self.settings.grid, self.settings.competition, generator=generator
        )
        self.codebook.copy_(trained.nodes)
        self._fit_mixture(u)
        nats = float(self.bound(items).mean())
        dead = int((self.hits(items) == 0).sum())
        warnings = []
        # On a map, nodes between clusters win nothing and are right to.
        if dead and self.settings.competition.competition != "map":
            warnings.append(
                f"{dead} of {len(self.codebook)} nodes win no item: use a smaller grid, or the "
                "competition 'map'."
            )
        return FitRecord(trained.steps, nats, None, warnings)

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return the log density of the mixture around the codebook in nats, (m,)."""
        with torch.autocast(device_type=items.device.type, enabled=False):
            u = self.standardiser(self.vectors(items, condition))
            return self._log_joint(u).logsumexp(1) + self.standardiser.log_det

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items of the mixture: a node by its weight, then its Gaussian."""
        self.check_condition(n, condition)
        weights = self.log_weights.exp().to(generator.device)
        node = torch.multinomial(weights, n, replacement=True, generator=generator)
        node = node.to(self.codebook.device)
        noise = draw_normal((n, self.size), like=self.codebook, generator=generator)
        if self.settings.shape == "full":
            noise = noise @ self.shape_factor.T
        u = self.codebook[node] + self.log_std[node, None].exp() * noise
        return self._items(u)

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the place of the winner of each item on the grid, (m, 2)."""
        self.check_items(items, condition)
        winner = self.distances(items).argmin(1)
        return grid_positions(self.settings.grid).to(self.codebook)[winner]

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return the node nearest to each place on the grid, (m, *event_shape)."""
        self.check_codes(codes, 2)
        self.check_condition(len(codes), condition)
        places = grid_positions(self.settings.grid).to(self.codebook)
        return self._items(self.codebook[squared_distances(codes, places).argmin(1)])

    def distances(self, items: Items) -> Tensor:
        """Return the distance of each item to each node in standardised units, (m, nodes)."""
        return squared_distances(self.standardiser(self.vectors(items)), self.codebook).sqrt()

    def quantisation_error(self, items: Items) -> float:
        """Return the mean distance of items to their winner, in the units of the items."""
        away = (items - self.reconstruct(items)).flatten(1)
        return float(away.norm(dim=1).mean())

    def topographic_error(self, items: Items) -> float:
        """Return the share of items whose two nearest nodes do not touch on the grid.

        References
        ----------
        Kiviluoto (1996), Topology preservation in self-organizing maps.
        """
        if len(self.codebook) < 2:
            raise ModelError(
                f"The topographic error needs 2 nodes, but the grid is {self.settings.grid}.",
                hint="Fit a map with a larger size_x or size_y.",
            )
        first, second = self.distances(items).topk(2, largest=False).indices.T
        apart = grid_distances(self.settings.grid).to(self.codebook)[first, second]
        return float((apart > _ADJACENT).float().mean())

    def node_items(self) -> Items:
        """Return the nodes as items in their units, (size_x, size_y, *event_shape)."""
        return self._items(self.codebook).reshape(*self.settings.grid, *self.event_shape)

    def component_planes(self) -> Tensor:
        """Return one map per number of an item: its value at each node, (d, size_x, size_y)."""
        return self._on_grid(self._items(self.codebook).flatten(1).T)

    def u_matrix(self) -> Tensor:
        """Return the mean distance of each node to those that touch it, (size_x, size_y).

        In the units of the items; ridges separate clusters, diagonals count as touching.
        """
        grid = self.settings.grid
        nodes = self._items(self.codebook).flatten(1)
        near = grid_distances(grid).to(nodes) <= _ADJACENT
        near.fill_diagonal_(False)
        away = (nodes[:, None] - nodes).norm(dim=2) * near
        return self._on_grid(away.sum(1) / near.sum(1).clamp(min=1))

    def density_map(self, items: Items, *, neighbours: int = 5) -> Tensor:
        """Return the mean distance of each node to its nearest items, (size_x, size_y).

        In standardised units; small where items are dense.

        Parameters
        ----------
        items : Tensor, shape (m, *event_shape)
            Where density is looked for.
        neighbours : int
            How many items a node looks at, at most m.
        """
        if not 1 <= neighbours <= len(items):
            raise ModelError(
                f"A node must look at 1 to {len(items)} items, but neighbours is {neighbours}."
            )
        nearest = self.distances(items).topk(neighbours, dim=0, largest=False).values
        return self._on_grid(nearest.mean(0))

    def hits(self, items: Items) -> Tensor:
        """Return how many items each node wins, (size_x, size_y)."""
        winner = self.distances(items).argmin(1)
        return self._on_grid(torch.bincount(winner, minlength=len(self.codebook)))

    def _on_grid(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:-1], *self.settings.grid)

    def _items(self, u: Tensor) -> Tensor:
        return self.standardiser.inverse(u).reshape(len(u), *self.event_shape)

    def _rounded(self, u: Tensor) -> Tensor:
        """Return vectors in the units where the Gaussians are round."""
        if self.settings.shape == "round":
            return u
        return torch.linalg.solve_triangular(self.shape_factor, u.T, upper=False).T

    def _log_joint(self, u: Tensor) -> Tensor:
        squared = squared_distances(self._rounded(u), self._rounded(self.codebook))
        log_std = self.log_std
        log_normal = -0.5 * (squared * (-2 * log_std).exp() + self.size * LOG_TWO_PI)
        return self.log_weights + log_normal - self.size * log_std

    @torch.no_grad()
    def _fit_mixture(self, u: Tensor) -> None:
        """Fit weights, sizes and common shape with the centres held."""
        m, count = len(u), len(self.codebook)
        given = self.settings.prior_items
        least = squared_distances(u, self.codebook).min(1).values.mean() / self.size
        floor = self.settings.std_floor * float(u.std(0, correction=0).square().mean().sqrt())
        self.log_weights.fill_(-math.log(count))
        self.log_std.fill_(math.log(max(float(least.sqrt()), floor)))
        self.shape_factor.copy_(torch.eye(len(self.shape_factor)))
        for _ in range(self.settings.mixture_steps):
            share = self._log_joint(u).softmax(1)
            total = share.sum(0)
            if self.settings.shape == "full":
                self._fit_shape(u, share)
            rounded = self._rounded(u)
            overall = (rounded - rounded.mean(0)).square().sum(1).mean()
            spread = (share * squared_distances(rounded, self._rounded(self.codebook))).sum(0)
            variance = (spread + given * overall) / (self.size * (total + given))
            self.log_std.copy_(variance.log() / 2).clamp_(min=math.log(floor))
            self.log_weights.copy_(((total + given / count) / (m + given)).log())

    def _fit_shape(self, u: Tensor, share: Tensor) -> None:
        # Every pair of item and node as one row would be large: the moments are enough.
        scaled = share * (-2 * self.log_std).exp()
        u, scaled, nodes = u.double(), scaled.double(), self.codebook.double()
        cross = u.T @ scaled @ nodes
        moment = (u.T * scaled.sum(1)) @ u - cross - cross.T + (nodes.T * scaled.sum(0)) @ nodes
        moment = moment / len(u)
        # With fewer items than numbers in one, the shape is mostly round.
        round_share = self.size / (len(u) + self.size)
        mean = moment.diagonal().mean().clamp(min=1e-12)
        moment = (1 - round_share) * moment
        moment.diagonal().add_(round_share * mean)
        factor = torch.linalg.cholesky(moment)
        self.shape_factor.copy_(factor / factor.diagonal().log().mean().exp())
