import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.seeding import derive_seed, numpy_generator, seeded_torch, torch_generator


@given(st.integers(), st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_a_seed_fits_every_generator(seed, names) -> None:
    derived = derive_seed(seed, *names)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, *names)


def test_streams_differ_by_seed_name_type_and_place() -> None:
    keys = [
        (0,),
        (1,),
        (0, "a"),
        (0, "b"),
        (0, 1),
        (0, "1"),
        (0, "a", "b"),
        (0, "ab"),
        (0, "b", "a"),
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_streams_are_fresh_each_time() -> None:
    first = torch.rand(3, generator=torch_generator(3, "x"))
    assert torch.equal(first, torch.rand(3, generator=torch_generator(3, "x")))
    assert (numpy_generator(3, "x").random(3) == numpy_generator(3, "x").random(3)).all()


def test_global_state_is_restored_even_after_an_error() -> None:
    before = torch.get_rng_state()
    with seeded_torch(5, "layer"):
        drawn = torch.rand(2)
    assert torch.equal(before, torch.get_rng_state())

    def fail_midway() -> None:
        with seeded_torch(5, "layer"):
            assert torch.equal(drawn, torch.rand(2))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_midway()
    assert torch.equal(before, torch.get_rng_state())
