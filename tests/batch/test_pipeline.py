"""Laws of doing three things at once; no test looks at a clock."""

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.batch.pipeline import overlap

LONG_S = 20.0


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("medseg-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


class Line:
    """Ten times the item plus one, with a note of everything that happens."""

    def __init__(self, trouble: dict[tuple[str, int], Callable[[], object]] | None = None) -> None:
        self.trouble = trouble or {}
        self.happened: list[tuple[str, int]] = []
        self.settled: list[int] = []

    def note(self, part: str, item: int) -> None:
        self.happened.append((part, item))
        self.trouble.get((part, item), lambda: None)()

    def items(self, count: int) -> Iterator[int]:
        for item in range(count):
            self.note("item", item)
            yield item

    def read(self, item: int) -> int:
        self.note("read", item)
        return item * 10

    def work(self, ready: int) -> int:
        self.note("work", ready // 10)
        return ready + 1

    def write(self, made: int) -> int:
        self.note("write", made // 10)
        self.happened.append(("written", made // 10))
        return made

    def settle(self, end: int, seconds: dict[str, float]) -> None:
        assert set(seconds) == {"predict", "wait_read", "wait_write"}
        assert min(seconds.values()) >= 0
        self.settled.append(end)
        self.note("settle", end // 10)

    def run(self, count: int, read_ahead: int) -> None:
        overlap(
            self.items(count),
            read=self.read,
            work=self.work,
            write=self.write,
            settle=self.settle,
            read_ahead=read_ahead,
        )

    def order(self, part: str) -> list[int]:
        return [item for done, item in self.happened if done == part]


@given(count=st.integers(0, 8), read_ahead=st.integers(0, 3))
def test_every_item_goes_all_the_way_in_order(count: int, read_ahead: int) -> None:
    line = Line()
    line.run(count, read_ahead)
    assert line.settled == [item * 10 + 1 for item in range(count)]
    for part in ("item", "read", "work", "write", "written", "settle"):
        assert line.order(part) == list(range(count))


@given(count=st.integers(0, 8), read_ahead=st.integers(0, 3))
def test_no_more_is_held_than_was_said(count: int, read_ahead: int) -> None:
    line = Line()
    line.run(count, read_ahead)
    seen = dict.fromkeys(("item", "read", "work", "write", "written", "settle"), 0)
    for part, _ in line.happened:
        seen[part] += 1
        assert seen["read"] - seen["work"] <= read_ahead + 1
        assert seen["work"] - seen["written"] <= 2
        assert seen["written"] - seen["settle"] <= 2


def test_nothing_read_ahead_is_one_thing_after_the_other_in_one_thread() -> None:
    where = set()
    parts = ("read", "work", "write", "settle")
    line = Line({(p, i): lambda: where.add(threading.get_ident()) for p in parts for i in range(2)})
    line.run(2, 0)
    assert where == {threading.get_ident()}
    each = ("item", "read", "work", "write", "written", "settle")
    assert line.happened == [(part, item) for item in range(2) for part in each]


def test_reading_and_writing_happen_while_the_network_works() -> None:
    read, written = threading.Event(), threading.Event()

    def meet() -> None:
        assert read.wait(LONG_S), "item 2 is not read while item 1 is at work"
        assert written.wait(LONG_S), "item 0 is not written while item 1 is at work"

    line = Line({("read", 2): read.set, ("write", 0): written.set, ("work", 1): meet})
    line.run(3, 1)
    assert line.order("settle") == [0, 1, 2]


@pytest.mark.parametrize("read_ahead", [0, 1, 2])
@pytest.mark.parametrize("part", ["item", "read", "work", "write", "settle"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_what_a_part_raises_ends_the_whole(
    part: str, error: type[BaseException], read_ahead: int
) -> None:
    def fail() -> None:
        raise error

    line = Line({(part, 2): fail})
    caught: list[BaseException] = []

    def run() -> None:
        try:
            line.run(5, read_ahead)
        except BaseException as raised:
            caught.append(raised)

    # In a thread of its own: one that hangs fails the test instead of stopping the suite.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert [type(raised) for raised in caught] == [error]
    # Whatever was written whole is settled, and nothing else is.
    assert line.order("settle") == line.order("written")
    # Items end in order: those before the one in trouble, as far as their turn had come.
    assert line.order("written") == list(range(len(line.order("written"))))
    if part != "item":
        assert line.order("written")[:2] == [0, 1]


def test_the_traceback_of_a_thread_comes_with_its_error() -> None:
    def deep_in_the_writer() -> None:
        raise ValueError

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - which line raised it is the point
        Line({("write", 0): deep_in_the_writer}).run(2, 1)
    assert "deep_in_the_writer" in [entry.name for entry in caught.traceback]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A process that was started in the background ignores SIGINT, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interruption_while_the_writer_works_lets_it_finish() -> None:
    at_work, interrupted = threading.Event(), threading.Event()

    def write() -> None:
        assert at_work.wait(LONG_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert interrupted.wait(LONG_S)

    def work() -> None:
        try:
            at_work.set()
            for _ in range(
                int(LONG_S * 100)
            ):  # a signal just before one long wait is seen after it
                time.sleep(0.01)
        finally:
            interrupted.set()

    line = Line({("write", 0): write, ("work", 1): work})
    with pytest.raises(KeyboardInterrupt):
        line.run(4, 1)
    assert line.order("written") == line.order("settle") == [0]
