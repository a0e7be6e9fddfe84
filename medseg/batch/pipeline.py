"""Read the next scans and write the last one while the network works on this one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Ready = TypeVar("_Ready")
_Made = TypeVar("_Made")
_End = TypeVar("_End")

#: Seconds of the calling thread, by what they went to.
Seconds = dict[str, float]
PREDICT, WAIT_READ, WAIT_WRITE = "predict", "wait_read", "wait_write"


def no_seconds() -> Seconds:
    """Return the shares of a calling thread that has done nothing yet."""
    return {PREDICT: 0.0, WAIT_READ: 0.0, WAIT_WRITE: 0.0}


class _Inline(Executor):
    """Does everything at once, in the calling thread."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _executor(name: str, read_ahead: int) -> Executor:
    if read_ahead == 0:
        return _Inline()
    # A sum over a volume is split by the number of threads: with as many as the caller's, the
    # thread gives the same bits as the caller would.
    return ThreadPoolExecutor(
        max_workers=1,
        thread_name_prefix=f"medseg-{name}",
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
    )


@contextmanager
def _clock(seconds: Seconds, share: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[share] += time.perf_counter() - start


def overlap(
    items: Iterable[_Item],
    *,
    read: Callable[[_Item], _Ready],
    work: Callable[[_Ready], _Made],
    write: Callable[[_Made], _End],
    settle: Callable[[_End, Seconds], None],
    read_ahead: int,
) -> None:
    """Do ``settle(write(work(read(item))))`` for every item, the parts of several items at once.

    One thread reads, the calling thread iterates, works and settles, one thread writes; each keeps
    the order of the items. What a part raises ends the whole, so a part that may fail returns its
    failure instead.

    Parameters
    ----------
    items : iterable
    read, work, write : callable
    settle : callable
        Gets each end with the seconds that the item cost the calling thread, in the order of the
        items, once it is written and the thread comes round.
    read_ahead : int
        Items read before their turn. Besides these, one item is at work and one is being written.
        0 does everything in the calling thread.

    Notes
    -----
    On an error, or an interruption of the calling thread, the item at work and those read ahead are
    dropped, the one being written is finished and settled, both threads end, and the error goes on.
    """
    reading: deque[tuple[Future[_Ready], Seconds]] = deque()
    writing: deque[tuple[Future[_End], Seconds]] = deque()

    def advance(writer: Executor) -> None:
        future, seconds = reading.popleft()
        with _clock(seconds, WAIT_READ):
            ready = future.result()
        with _clock(seconds, PREDICT):
            made = work(ready)
        finish()
        with _clock(seconds, WAIT_WRITE):
            writing.append((writer.submit(write, made), seconds))
        if writing[0][0].done():
            finish()

    def finish() -> None:
        if writing:
            future, seconds = writing[0]
            with _clock(seconds, WAIT_WRITE):
                end = future.result()
            writing.popleft()
            settle(end, seconds)

    try:
        with _executor("read", read_ahead) as reader, _executor("write", read_ahead) as writer:
            try:
                for item in items:
                    seconds = no_seconds()
                    with _clock(seconds, WAIT_READ):
                        reading.append((reader.submit(read, item), seconds))
                    if len(reading) > read_ahead:
                        advance(writer)
                while reading:
                    advance(writer)
                finish()
            except BaseException:
                reader.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        # Both threads have ended here. Only after an error is a write left to settle.
        while writing:
            future, seconds = writing.popleft()
            if future.done() and future.exception() is None:
                settle(future.result(), seconds)
