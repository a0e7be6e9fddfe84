"""Ways to run one network: the same logits, at different speeds.

:mod:`engine` has the protocol with its law and the one entry, ``make_engine``; :mod:`auto` measures
the engines that are installed and takes the fastest whose masks agree. Each of :mod:`eager`,
:mod:`torch_fast`, :mod:`openvino` and :mod:`onnx` is one engine; :mod:`plain` makes the copy of a
network that compilers understand, :mod:`compiled` keeps what they made.

To add an engine: one file here with a class that fulfils ``Engine``, a line in ``make_engine``, its
precisions in ``PRECISIONS``; ``tests/contracts/test_engines.py`` then holds it to the law.
"""
