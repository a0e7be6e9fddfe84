"""Batches prepared while the network learns from the ones before."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from medseg.data.training_set import Batch, Batches


def batches_ahead(sampler: Batches, numbers: range, *, ahead: int) -> Generator[Batch]:
    """Yield the batches ``numbers`` in order, ``ahead`` of them prepared in threads of their own.

    A batch depends on its number alone, so these are the very batches that would be made one by
    one, wherever the training stops and resumes. An error in a batch is raised when it is its turn.

    Parameters
    ----------
    sampler : Batches
    numbers : range
    ahead : int
        Batches, and threads; 0 prepares each when it is asked for.
    """
    workers = min(ahead, len(numbers))
    if workers == 0:
        yield from map(sampler.batch, numbers)
        return
    threads = torch.get_num_threads()
    all_started = Barrier(workers + 1)

    def start() -> None:
        # One thread each: more would take the network's own.
        torch.set_num_threads(1)
        all_started.wait()

    with ThreadPoolExecutor(workers, initializer=start) as pool:
        waiting = deque(pool.submit(sampler.batch, number) for number in numbers[:workers])
        all_started.wait()
        # What the threads set for themselves is also what later threads would begin with.
        torch.set_num_threads(threads)
        try:
            for number in numbers[workers:]:
                batch = waiting.popleft().result()
                waiting.append(pool.submit(sampler.batch, number))
                yield batch
            while waiting:
                yield waiting.popleft().result()
        finally:
            for batch in waiting:
                batch.cancel()
