"""Batches prepared ahead are the batches, whatever the threads do."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from medseg.training.ahead import batches_ahead


class Numbers:
    """Its batch is the number; odd ones take longer. Counts what it was asked for."""

    def __init__(self, *, broken: int = -1) -> None:
        self.broken, self.asked, self.threads = broken, [], set()

    def batch(self, step):
        self.asked.append(step)
        self.threads.add(threading.get_ident())
        time.sleep(0.002 * (step % 2))
        if step == self.broken:
            raise ValueError("no such batch")
        return step


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
@pytest.mark.parametrize("numbers", [range(0), range(3, 4), range(1, 24, 2), range(20)])
def test_batches_come_in_order_and_once(ahead, numbers):
    sampler = Numbers()
    assert list(batches_ahead(sampler, numbers, ahead=ahead)) == list(numbers)
    assert sorted(sampler.asked) == list(numbers)
    assert (threading.get_ident() in sampler.threads) == (ahead == 0 and len(numbers) > 0)


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_are_prepared_than_asked_for(ahead):
    sampler = Numbers()
    batches = batches_ahead(sampler, range(100), ahead=ahead)
    for taken in range(4):
        assert next(batches) == taken
    batches.close()
    assert len(sampler.asked) <= 4 + ahead


def test_an_error_is_raised_at_its_turn():
    batches = batches_ahead(Numbers(broken=4), range(9), ahead=3)
    assert [next(batches) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no such batch"):
        next(batches)


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    assert list(batches_ahead(Numbers(), range(4), ahead=2)) == [0, 1, 2, 3]
    assert torch.get_num_threads() == before
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [before]


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_training_does_not_know_how_its_batches_were_made(toy, ahead):
    def weights(ahead):
        plan = toy.plan(batches_ahead=ahead)
        return toy.tensors_of(toy.train_from_scratch(toy.cases(), plan)[0])

    alone, beside = weights(0), weights(ahead)
    assert all(torch.equal(beside[name], value) for name, value in alone.items())
