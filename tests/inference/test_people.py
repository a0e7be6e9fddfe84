"""Names that are found by who has them, and read by nobody."""

from hypothesis import given
from hypothesis import strategies as st

from medseg.inference.people import hidden_names, seen_among

NAMES = st.sets(st.text(min_size=1, max_size=8), max_size=5)


@given(NAMES, NAMES, NAMES)
def test_who_was_seen_is_found_whichever_model_hid_the_name(
    first: set[str], second: set[str], asked: set[str]
) -> None:
    source = hidden_names(first, key="a")
    kept = hidden_names({*source, *second}, key="b")
    assert set(source) <= set(kept), "those of a source stay comparable"
    assert seen_among(kept, asked) == sorted((first | second) & asked)


@given(NAMES)
def test_names_of_before_are_found_as_they_are(names: set[str]) -> None:
    assert seen_among(names, names) == sorted(names)
    assert not names & set(hidden_names(names, key="a"))


def test_every_model_has_a_salt_of_its_own() -> None:
    one, again, other = (hidden_names(["p1", "p2"], key=key) for key in ("a", "a", "b"))
    assert one == again
    assert not set(one) & set(other)
    assert len({entry.split(":")[1] for entry in one}) == 1
