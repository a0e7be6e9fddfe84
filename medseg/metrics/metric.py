"""What a metric says about itself."""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["higher", "lower", "zero"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The words that belong to a number in a table.

    Parameters
    ----------
    name : str
        Key in score tables.
    title : str
        Heading in a report.
    unit : str
        ``"1"`` for a pure number, else ``"mm"``, ``"ml"``, ``"%"`` or ``"nats"``.
    direction : "higher", "lower" or "zero"
        Where better values lie; ``"zero"`` for signed errors.
    empty : str
        The value when one mask or both are empty.
    perfect : float
        The value of a prediction that equals the reference.
    worst : float or None
        The value given to a missing prediction; None when it depends on the case and has to stand
        in its row (see :func:`medseg.metrics.evaluate.worst_scores`).
    needs_probability : bool
        True when the metric is of probabilities rather than of masks.
    """

    name: str
    title: str
    unit: str
    direction: Direction
    empty: str
    perfect: float
    worst: float | None
    needs_probability: bool = False
