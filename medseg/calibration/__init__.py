"""From what a model said of labelled cases to promises about the next case.

``temperature`` mends probabilities, ``conformal`` finds thresholds and intervals with a stated
coverage, ``typical`` tells how unusual a case is, ``record`` keeps all of it beside the model.
Nothing here knows networks or files of scans: :mod:`medseg.inference.calibrate` fits a calibration
to a model and :mod:`medseg.inference.decide` applies it.
"""
