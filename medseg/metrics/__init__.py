"""How good a prediction is: pure functions of arrays and a spacing in mm.

A metric is one function in the file it belongs to, and one :class:`~medseg.metrics.metric.Metric`
row beside it with name, unit, direction and what happens when a mask is empty. The row is listed in
``METRICS`` of :mod:`medseg.metrics.evaluate`; evaluation, aggregation and reports pick it up from
there.
"""
