from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.splits import (
    SplitSettings,
    bootstrap_subjects,
    few_shot_subsets,
    load_or_make_split,
    load_split,
    split_by_subject,
    subject_folds,
)
from medseg.errors import DataError
from medseg.scan import Case


@dataclass(frozen=True)
class Listing:
    """A source that can be listed but not read: splitting must not read."""

    subjects: tuple[str, ...]
    name: str = "listing"
    licence: str = "none"
    citation: str = "nobody"

    @property
    def identifiers(self) -> tuple[str, ...]:
        return tuple(f"{subject}_{index}" for index, subject in enumerate(self.subjects))

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> Case:
        raise AssertionError("a split must not read voxels")


def listing(subjects: int, visits: int = 2) -> Listing:
    return Listing(tuple(f"s{index}" for index in range(subjects) for _ in range(visits)))


SUBJECTS = st.lists(st.sampled_from([f"s{i}" for i in range(9)]), min_size=8, max_size=30).filter(
    lambda names: len(set(names)) >= 4
)


@given(SUBJECTS, st.integers(0, 99))
def test_no_subject_in_two_parts_and_none_lost(subjects: list[str], seed: int) -> None:
    source = Listing(tuple(subjects))
    split = split_by_subject(source, seed=seed, fractions={"train": 0.6, "val": 0.2, "test": 0.2})
    owners = [(subject, part) for part in split.parts for subject in split.subjects_of(part)]
    assert len(owners) == len({subject for subject, _ in owners}) == len(set(subjects))
    assert sorted(case for cases in split.parts.values() for case in cases) == sorted(
        source.identifiers
    )
    assert all(split.parts.values())


def test_sizes_and_rest_count_subjects() -> None:
    split = split_by_subject(listing(10), seed=1, sizes={"train": 3, "val": 2}, rest="test")
    assert [len(split.subjects_of(part)) for part in ("train", "val", "test")] == [3, 2, 5]
    assert len(split.parts["train"]) == 6
    split = split_by_subject(listing(10), seed=1, sizes={"train": 3})
    assert len(split.parts["train"]) == 6


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({"a": 0.7, "b": 0.15, "c": 0.15}, [2, 1, 1]),
        ({"a": 0.5, "b": 0.5}, [2, 2]),
        ({"a": 0.25}, [1]),
        ({"a": 0.98, "b": 0.02}, [3, 1]),
    ],
)
def test_fractions_of_four_subjects(fractions: dict[str, float], expected: list[int]) -> None:
    split = split_by_subject(listing(4), seed=0, fractions=fractions)
    assert [len(split.subjects_of(part)) for part in fractions] == expected


def test_seed_decides_and_order_of_cases_does_not() -> None:
    source = listing(30, visits=1)
    first = split_by_subject(source, seed=0, sizes={"train": 10})
    again = split_by_subject(Listing(source.subjects[::-1]), seed=0, sizes={"train": 10})
    other = split_by_subject(source, seed=1, sizes={"train": 10})
    assert first.subjects_of("train") == again.subjects_of("train")
    assert first.subjects_of("train") != other.subjects_of("train")


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"sizes": {"train": 11}}, "needs at least 11 subjects, but the source has 10"),
        ({"sizes": {"train": 10}, "rest": "test"}, "at least 11"),
        ({"sizes": {"train": 0}}, "above 0"),
        ({"fractions": {"a": 0.9, "b": 0.2}}, "at most 1"),
        ({}, "either sizes or fractions"),
        ({"sizes": {"a": 1}, "fractions": {"b": 0.5}}, "either sizes or fractions"),
        ({"sizes": {"a": 1}, "rest": "a"}, "'a' is used"),
    ],
)
def test_impossible_splits(asked: dict[str, object], match: str) -> None:
    with pytest.raises(DataError, match=match):
        split_by_subject(listing(10), seed=0, **asked)  # type: ignore[arg-type]


def test_saved_split_is_never_redrawn(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    request = SplitSettings(seed=3, fractions={"train": 0.5, "test": 0.5})
    made = load_or_make_split(path, listing(8), request=request)
    assert load_or_make_split(path, listing(8), request=request) == made == load_split(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="'seed': 4"):
        load_or_make_split(
            path, listing(8), request=SplitSettings(seed=4, fractions=request.fractions)
        )
    with pytest.raises(DataError, match=r"2 new \(s8_16, s8_17\)"):
        load_or_make_split(path, listing(9), request=request)
    with pytest.raises(DataError, match="2 missing"):
        load_or_make_split(path, listing(7), request=request)
    assert path.read_bytes() == before


def test_case_that_changed_owner_is_noticed(tmp_path: Path) -> None:
    class Renamed(Listing):
        @property
        def identifiers(self) -> tuple[str, ...]:
            return tuple(f"case{index}" for index in range(len(self)))

    request = SplitSettings(sizes={"train": 1})
    load_or_make_split(tmp_path / "s.json", Renamed(("a", "b")), request=request)
    with pytest.raises(DataError, match="1 of another subject"):
        load_or_make_split(tmp_path / "s.json", Renamed(("a", "a")), request=request)


@pytest.mark.parametrize("content", ["", "[]", '{"parts": {}}', "\x00"])
def test_damaged_split_is_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"split\.json"):
        load_or_make_split(path, listing(4), request=SplitSettings(sizes={"a": 1}))
    assert path.read_text() == content


@given(st.integers(0, 999), st.integers(0, 20))
def test_bootstrap_draws_as_many_from_the_same_people(seed: int, member: int) -> None:
    pool = [f"s{index}" for index in range(6)] * 2
    drawn = bootstrap_subjects(pool, seed=seed, member=member)
    assert len(drawn) == 6
    assert set(drawn) <= set(pool)
    assert drawn == bootstrap_subjects(pool[::-1], seed=seed, member=member)


def test_bootstrap_members_differ_and_leave_a_third_out() -> None:
    pool = [f"s{index}" for index in range(50)]
    members = [bootstrap_subjects(pool, seed=0, member=index) for index in range(20)]
    assert len(set(members)) == 20
    left_out = sum(1 - len(set(member)) / 50 for member in members) / 20
    assert left_out == pytest.approx(0.364, abs=0.03)  # (1 - 1/50)^50


@given(st.integers(0, 999))
def test_drawn_subsets_are_nested(seed: int) -> None:
    pool = [f"s{index}" for index in range(12)]
    subsets = few_shot_subsets(pool, [1, 3, 8], seed=seed, repeats=4)
    assert len(subsets) == 12
    by = {(subset.size, subset.index): set(subset.subjects) for subset in subsets}
    for index in range(4):
        assert by[1, index] < by[3, index] < by[8, index]
        assert [len(by[size, index]) for size in (1, 3, 8)] == [1, 3, 8]


def test_all_subsets() -> None:
    subsets = few_shot_subsets(["a", "b", "c", "d", "d"], [1, 2, 3])
    assert [subset.size for subset in subsets] == [1] * 4 + [2] * 6 + [3] * 4
    assert len({subset.subjects for subset in subsets}) == 14
    with pytest.raises(DataError, match=r"\[5\]"):
        few_shot_subsets(["a", "b"], [5])
    with pytest.raises(DataError, match="10000 subsets"):
        few_shot_subsets([f"s{index}" for index in range(40)], [20])


@given(subjects=st.integers(2, 12), folds=st.integers(2, 12), seed=st.integers(0, 5))
def test_folds_leave_out_every_case_once_and_whole_subjects(
    subjects: int, folds: int, seed: int
) -> None:
    source = listing(subjects)
    if folds > subjects:
        with pytest.raises(DataError, match="at most the subjects"):
            subject_folds(source, folds, seed=seed)
        return
    parts = subject_folds(source, folds, seed=seed)
    assert sorted(case for part in parts for case in part) == sorted(source.identifiers)
    whose = dict(zip(source.identifiers, source.subjects, strict=True))
    people = [{whose[case] for case in part} for part in parts]
    assert sum(map(len, people)) == subjects
    assert max(map(len, people)) - min(map(len, people)) <= 1
