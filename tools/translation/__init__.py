"""What translation is worth on phantoms whose truth is known; run by ``tools/translation_table``.

``cohorts`` makes the cases, ``images``, ``segment`` and ``restoring`` measure, each cell into a
file of its own, ``report`` makes the tables of them.
"""
