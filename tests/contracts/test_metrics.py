"""The law of a metric: perfect is best, the empty policy holds, the words are complete."""

import numpy as np
import pytest

from medseg.metrics.evaluate import METRICS, evaluate_masks
from medseg.metrics.metric import Metric

SPACING_MM = (1.0, 0.8, 2.5)
SHAPE = (24, 30, 10)


def ellipsoid(scale: float = 1.0, shift: int = 0) -> np.ndarray:
    x, y, z = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)), indexing="ij"
    )
    inside = ((x - 11) / 7) ** 2 + ((y - 11) / 6) ** 2 + ((z - 12) / 8) ** 2 <= scale**2
    return np.roll(inside, shift, axis=0)


def score(metric: Metric, prediction: np.ndarray, reference: np.ndarray) -> float:
    probability = prediction.astype(np.float32)
    return evaluate_masks(prediction, reference, spacing_mm=SPACING_MM, probability=probability)[
        metric.name
    ]


def badness(metric: Metric, value: float) -> float:
    return {"higher": -value, "lower": value, "zero": abs(value)}[metric.direction]


def test_every_metric_of_the_table_is_seen() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names)) == 12


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
class TestMetric:
    def test_says_unit_direction_and_empty_policy(self, metric: Metric) -> None:
        assert metric.title
        assert metric.empty
        assert metric.unit in {"1", "mm", "ml", "%", "nats"}
        suffix = metric.name.rsplit("_", 1)[-1]
        assert suffix not in {"mm", "ml", "nats"} or suffix == metric.unit
        assert metric.worst is None or badness(metric, metric.worst) > badness(
            metric, metric.perfect
        )

    def test_perfect_prediction_gets_the_best_value(self, metric: Metric) -> None:
        reference = ellipsoid()
        assert score(metric, reference, reference) == pytest.approx(metric.perfect, abs=1e-5)

    def test_worse_predictions_get_no_better_values(self, metric: Metric) -> None:
        reference = ellipsoid()
        ladder = [reference, ellipsoid(0.85), ellipsoid(0.5), np.zeros(SHAPE, dtype=bool)]
        values = [badness(metric, score(metric, prediction, reference)) for prediction in ladder]
        assert values == pytest.approx(sorted(values))
        assert values[-1] > values[0]

    def test_both_empty_is_perfect(self, metric: Metric) -> None:
        empty = np.zeros(SHAPE, dtype=bool)
        assert score(metric, empty, empty) == pytest.approx(metric.perfect, abs=1e-5)

    def test_does_not_depend_on_the_order_of_axes(self, metric: Metric) -> None:
        prediction, reference = ellipsoid(0.8, shift=2), ellipsoid()
        turned = evaluate_masks(
            prediction.transpose(2, 0, 1),
            reference.transpose(2, 0, 1),
            spacing_mm=(SPACING_MM[2], *SPACING_MM[:2]),
            probability=prediction.transpose(2, 0, 1).astype(np.float32),
        )
        assert turned[metric.name] == pytest.approx(score(metric, prediction, reference))


def test_empty_policy_of_one_empty_mask() -> None:
    empty, full = np.zeros(SHAPE, dtype=bool), ellipsoid()
    diagonal_mm = float(np.linalg.norm(np.array(SHAPE) * SPACING_MM))
    for prediction, reference in ((empty, full), (full, empty)):
        scores = evaluate_masks(prediction, reference, spacing_mm=SPACING_MM)
        for name in ("dsc", "iou", "nsd", "lesion_sensitivity", "lesion_precision", "lesion_f1"):
            assert scores[name] == 0, name
        assert scores["hd95_mm"] == pytest.approx(diagonal_mm)


def test_known_ellipsoid_has_its_volume() -> None:
    scores = evaluate_masks(ellipsoid(), ellipsoid(), spacing_mm=SPACING_MM)
    assert scores["volume_ml"] == pytest.approx(4 / 3 * np.pi * 7 * 6 * 8 / 1000, rel=0.03)
