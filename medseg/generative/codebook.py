"""Competitive learning: a codebook of nodes on a grid that move towards the items they win."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg.generative.noise import draw_uniform
from medseg.settings import settings


@settings
class CompetitionSettings:
    """Who learns from an item, how strongly, and for how long."""

    #: ``wta``: the winner takes all, k-means. ``wtm``: the winner takes most, the others less the
    #: farther they are from the item. ``map``: the winner and its neighbours on the grid.
    competition: Literal["wta", "wtm", "map"] = "map"
    #: ``batch``: all items, then all nodes; ``online``: one item at a time, in random order.
    method: Literal["batch", "online"] = "batch"
    #: How a map's neighbours learn: a Gaussian of the distance on the grid, or all within it.
    neighbourhood: Literal["gaussian", "bubble"] = "gaussian"
    #: Where nodes start: ``plane``: on the plane of the two main directions; ``small``: uniform on
    #: ``[-1/(2MH), 1/(2MH)]`` for a grid of M by H; ``items``: at items drawn at random.
    start: Literal["plane", "small", "items"] = "plane"
    #: Width of the competition at the start, falling geometrically to ``width_end`` over the first
    #: half of the epochs. In steps of the grid for ``map`` (by default half of its longer side), in
    #: places of the ranking for ``wtm`` (by default half of the nodes).
    width_start: float | None = Field(default=None, gt=0)
    #: Width at the end; by default 0.5 steps for ``map``, 0.05 places for ``wtm``.
    width_end: float | None = Field(default=None, gt=0)
    #: Share of the way to the item that the winner goes, online; falls linearly to the last.
    learning_rate: float = Field(default=0.5, gt=0, le=1)
    #: That share at the end.
    learning_rate_end: float = Field(default=0.01, gt=0, le=1)
    #: Passes over the items, at most.
    epochs: int = Field(default=40, ge=1)
    #: Items learned from one at a time, at most.
    max_steps: int = Field(default=10_000, ge=1)
    #: Weight ``lambda`` of the newest item in the running error
    #: ``Q = lambda rho^2 + (1 - lambda) Q``.
    running_share: float = Field(default=0.01, gt=0, lt=1)
    #: Stop once ``Q`` changed by less than this share over an epoch, with the width at its end.
    tolerance: float = Field(default=1e-3, ge=0)

    def widths(self, grid: tuple[int, int]) -> tuple[float, float]:
        """Return the first and the last width of the competition."""
        if self.competition == "map":
            first, last = max(max(grid) / 2, 0.5), 0.5
        else:
            first, last = max(math.prod(grid) / 2, 0.05), 0.05
        return self.width_start or first, self.width_end or last


@dataclass(frozen=True)
class CodebookFit:
    """A trained codebook, (k, d), the steps it took, and its last mean squared error ``Q``."""

    nodes: Tensor
    steps: int
    error: float


def grid_positions(grid: tuple[int, int]) -> Tensor:
    """Return the places of the nodes on the grid, (k, 2); node ``a * size_y + b`` is (a, b)."""
    rows, columns = (torch.arange(length, dtype=torch.float32) for length in grid)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def grid_distances(grid: tuple[int, int]) -> Tensor:
    """Return the squared distances between nodes on the grid, (k, k)."""
    positions = grid_positions(grid)
    return (positions[:, None] - positions).square().sum(2)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared Euclidean distances between rows, (m, k); cheap in memory."""
    product = a @ b.T
    return (a.square().sum(1)[:, None] - 2 * product + b.square().sum(1)).clamp(min=0)


def neighbourhood(
    squared: Tensor, width: float, kind: Literal["gaussian", "bubble"] = "gaussian"
) -> Tensor:
    """Return ``K(r)`` for squared distances ``r^2``: 1 at 0, never negative, never rising."""
    if kind == "bubble":
        return (squared <= width**2).to(squared)
    return (-0.5 * squared / width**2).exp()


def ranking(squared: Tensor, width: float) -> Tensor:
    """Return ``K = exp(-rank / width)`` along the last axis: 1 for the nearest node, rank 0.

    A function of the distance itself would draw nodes together until they are one; the rank, which
    no two nodes share, keeps them apart.

    References
    ----------
    Martinetz and Schulten (1991), A "neural gas" network learns topologies, equation 3.
    """
    return (-squared.argsort(-1).argsort(-1).to(squared) / width).exp()


def start_nodes(
    u: Tensor, grid: tuple[int, int], start: str, *, generator: torch.Generator
) -> Tensor:
    """Return the first nodes, (k, d), for items ``u``, (m, d)."""
    count = math.prod(grid)
    if start == "small":
        return draw_uniform((count, u.shape[1]), like=u, generator=generator) / (2 * count)
    if start == "items":
        order = torch.randperm(len(u), generator=generator, device=generator.device)
        # With fewer items than nodes some nodes start at the same item.
        return u[order.to(u.device)][torch.arange(count, device=u.device) % len(u)].clone()
    mean = u.mean(0)
    _, lengths, directions = torch.linalg.svd(u - mean, full_matrices=False)
    axes = torch.zeros(2, u.shape[1], dtype=u.dtype, device=u.device)
    kept = min(2, len(directions))
    axes[:kept] = (lengths[:kept, None] / len(u) ** 0.5) * directions[:kept]
    # The sign of a direction is arbitrary and differs between machines: make it the item's own.
    axes *= torch.where(axes.gather(1, axes.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)
    limits = torch.tensor([max(length - 1, 1) for length in grid], device=u.device)
    # From -1.5 to 1.5 deviations along each direction; a side of one node stays in the middle.
    place = 3 * grid_positions(grid).to(u.device) / limits - 1.5
    place = place * torch.tensor([float(length > 1) for length in grid], device=u.device)
    return mean + place @ axes


def train_codebook(
    u: Tensor, grid: tuple[int, int], settings: CompetitionSettings, *, generator: torch.Generator
) -> CodebookFit:
    """Return nodes that have competed for the items ``u``, (m, d).

    ``w += eta (x - w) K``, with ``K`` the indicator of the winner (``wta``), a falling function of
    how near the node is to the item among all nodes (``wtm``, see :func:`ranking`), or of its
    distance to the winner on the grid (``map``). A batch step goes all the way to the mean of the
    items weighted by ``K``.

    References
    ----------
    Kohonen (1982), Self-organized formation of topologically correct feature maps.
    Kohonen (2001), Self-organizing maps, third edition, equations 3.2 and 3.22 (batch map).
    """
    nodes = start_nodes(u, grid, settings.start, generator=generator)
    train = _train_batch if settings.method == "batch" else _train_online
    return train(u, nodes, grid, settings, generator)


def _train_batch(
    u: Tensor,
    nodes: Tensor,
    grid: tuple[int, int],
    settings: CompetitionSettings,
    generator: torch.Generator,
) -> CodebookFit:
    between = grid_distances(grid).to(u)
    last, epoch = math.inf, 0
    for epoch in range(1, settings.epochs + 1):
        progress = (epoch - 1) / settings.epochs
        width = _width(progress, settings, grid)
        squared = squared_distances(u, nodes)
        least, winner = squared.min(1)
        error = float(least.mean())
        if _settled(error, last, progress, settings):
            break
        last = error
        if settings.competition == "wtm":
            share = ranking(squared, width)
            total, sums = share.sum(0), share.T @ u
        else:
            won = torch.bincount(winner, minlength=len(nodes)).to(u)
            total, sums = won, torch.zeros_like(nodes).index_add_(0, winner, u)
            if settings.competition == "map":
                kernel = neighbourhood(between, width, settings.neighbourhood)
                total, sums = kernel @ won, kernel @ sums
        # A node that nothing reaches stays where it is.
        reached = total > 1e-12 * len(u)
        nodes = torch.where(reached[:, None], sums / total.clamp(min=1e-30)[:, None], nodes)
    return CodebookFit(nodes, epoch, float(squared_distances(u, nodes).min(1).values.mean()))


def _train_online(
    u: Tensor,
    nodes: Tensor,
    grid: tuple[int, int],
    settings: CompetitionSettings,
    generator: torch.Generator,
) -> CodebookFit:
    between = grid_distances(grid).to(u)
    steps = min(settings.epochs * len(u), settings.max_steps)
    error = float(squared_distances(u, nodes).min(1).values.mean())
    last, order, done = math.inf, [], 0
    for step in range(steps):
        if not order:
            order = torch.randperm(len(u), generator=generator, device=generator.device).tolist()
            if step and _settled(error, last, step / steps, settings):
                break
            last = error
        progress = step / steps
        width = _width(progress, settings, grid)
        rate = settings.learning_rate + progress * (
            settings.learning_rate_end - settings.learning_rate
        )
        least = online_step(
            nodes, u[order.pop()], between, rate=rate, width=width, settings=settings
        )
        error = settings.running_share * least + (1 - settings.running_share) * error
        done = step + 1
    return CodebookFit(nodes, done, error)


def online_step(
    nodes: Tensor,
    item: Tensor,
    between: Tensor,
    *,
    rate: float,
    width: float,
    settings: CompetitionSettings,
) -> float:
    """Move ``nodes``, (k, d), in place towards one item, (d,).

    Parameters
    ----------
    nodes : Tensor, shape (k, d)
        Changed.
    item : Tensor, shape (d,)
        What is learned from.
    between : Tensor, shape (k, k)
        Squared distances of the nodes on the grid.
    rate : float
        ``eta``.
    width : float
        Of the competition, in steps of the grid (``map``) or places of the ranking (``wtm``).
    settings : CompetitionSettings
        The kind of competition.

    Returns
    -------
    float
        Squared distance of the item to the winner, before the step.
    """
    away = item - nodes
    squared = away.square().sum(1)
    winner = int(squared.argmin())
    least = float(squared[winner])
    if settings.competition == "wta":
        nodes[winner] += rate * away[winner]
        return least
    share = (
        neighbourhood(between[winner], width, settings.neighbourhood)
        if settings.competition == "map"
        else ranking(squared, width)
    )
    nodes.addcmul_(away, rate * share[:, None])
    return least


def _width(progress: float, settings: CompetitionSettings, grid: tuple[int, int]) -> float:
    first, last = settings.widths(grid)
    return first * (last / first) ** min(2 * progress, 1.0)


def _settled(error: float, last: float, progress: float, settings: CompetitionSettings) -> bool:
    if settings.competition != "wta" and progress < 0.5:
        return False
    return last < math.inf and abs(last - error) <= settings.tolerance * max(last, 1e-30)
