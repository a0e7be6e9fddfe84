"""Scans like this one: exact search, and search by short binary codes with what it loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.seeding import numpy_generator

Method = Literal["pca sign", "itq", "random projection"]
METHODS: tuple[Method, ...] = ("pca sign", "itq", "random projection")
_ITQ_STEPS = 50

Matrix = NDArray[np.float64]
Codes = NDArray[np.bool_]


@dataclass(frozen=True)
class Recall:
    """How many of the k exact neighbours a search by codes finds.

    Parameters
    ----------
    method : str
    bits : int
        Length of a code.
    k : int
    recall : float
        Mean over scans of the found share of their k nearest, with the k nearest codes taken.
    reranked : float
        The same when the 4 k nearest codes are searched exactly.
    chance : float
        Recall of k scans drawn blindly.
    """

    method: str
    bits: int
    k: int
    recall: float
    reranked: float
    chance: float


def binary_codes(scores: Matrix, *, bits: int, method: Method, seed: int) -> Codes:
    """Return a binary code for each scan (n, d), (n, bits).

    ``pca sign``: the signs of the first components. ``itq``: of the components turned so that
    their signs lose least. ``random projection``: of random directions, which may be more than d.

    References
    ----------
    Gong and Lazebnik (2011), Iterative quantization: a Procrustean approach to learning binary
    codes, section 2. Charikar (2002), Similarity estimation techniques from rounding algorithms.
    """
    centred = scores - scores.mean(0)
    rng = numpy_generator(seed, "explore", "codes", method, bits)
    if method == "random projection":
        return centred @ rng.normal(size=(centred.shape[1], bits)) > 0
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    codes = centred @ directions[:bits].T
    if method == "itq":
        codes = codes @ _turn(codes, rng)
    return codes > 0


def _turn(codes: Matrix, rng: np.random.Generator) -> Matrix:
    """Return the rotation that brings codes nearest to the corners of a cube."""
    turn = np.linalg.qr(rng.normal(size=(codes.shape[1],) * 2))[0]
    for _ in range(_ITQ_STEPS):
        left, _, right = np.linalg.svd(np.where(codes @ turn > 0, 1.0, -1.0).T @ codes)
        turn = (left @ right).T
    return turn


def hamming(codes: Codes) -> Matrix:
    """Return in how many bits each two codes differ, (n, n)."""
    signs = np.where(codes, 1.0, -1.0)
    return np.round((codes.shape[1] - signs @ signs.T) / 2)


def distances(scores: Matrix) -> Matrix:
    """Return the Euclidean distance of each two scans, (n, n)."""
    squared = (scores**2).sum(1)
    return np.sqrt(np.clip(squared[:, None] + squared - 2 * scores @ scores.T, 0, None))


def nearest(distance: Matrix, k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the k nearest others of each scan, (n, k), nearest first; ties in random order.

    In the order of the files, ties would favour a scan's neighbours on the disk.
    """
    away = distance + 0.0
    np.fill_diagonal(away, np.inf)
    tie = numpy_generator(seed, "explore", "ties").random(away.shape)
    return np.lexsort((tie, away), axis=1)[:, :k]


def recall_at(distance: Matrix, exact: Matrix, *, k: int, seed: int = 0) -> tuple[float, float]:
    """Return recall@k of a search by ``distance``, (n, n), against one by ``exact``; the same
    after an exact search among the 4 k nearest.
    """
    truth = nearest(exact, k, seed=seed)
    found = nearest(distance, min(4 * k, len(exact) - 1), seed=seed)
    hits = [
        len(np.intersect1d(true, some[:k])) / k for true, some in zip(truth, found, strict=True)
    ]
    among = [len(np.intersect1d(true, some)) / k for true, some in zip(truth, found, strict=True)]
    return float(np.mean(hits)), float(np.mean(among))


def recalls(
    scores: Matrix,
    *,
    seed: int,
    bits: tuple[int, ...] = (8, 16, 32, 64),
    ks: tuple[int, ...] = (1, 5, 10),
) -> list[Recall]:
    """Return recall@k of each method, length of code and k, where the cohort allows it."""
    n = len(scores)
    exact, found = distances(scores), []
    most = min(n - 1, scores.shape[1])
    for method in METHODS:
        for length in bits:
            if method != "random projection" and length > most:
                continue
            away = hamming(binary_codes(scores, bits=length, method=method, seed=seed))
            for k in (k for k in ks if k < n - 1):
                plain, reranked = recall_at(away, exact, k=k, seed=seed)
                found.append(Recall(method, length, k, plain, reranked, k / (n - 1)))
    return found
