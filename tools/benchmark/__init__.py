"""What ``tools/bench`` runs; never imported by medseg.

``plan`` says what is measured, ``worker`` measures one thing in a process of its own, ``ours``,
``peers``, ``steps`` and ``chip`` are what is measured, ``material`` makes weights and cases once,
``plain`` gives the peers the same weights, ``report`` and ``figure`` show the result.
"""
