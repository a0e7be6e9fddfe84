import pytest
import torch

from medseg.data.source import JoinedSource, SubsetSource
from medseg.errors import DataError
from medseg.geometry import Grid
from medseg.scan import Case, Scan


class ToySource:
    licence = "none"
    citation = "nobody"

    def __init__(self, name: str, subjects: tuple[str, ...]) -> None:
        self.name = name
        self.subjects = subjects
        self.identifiers = tuple(f"{subject}_{i}" for i, subject in enumerate(subjects))

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> Case:
        if not 0 <= index < len(self):
            raise IndexError(index)
        grid = Grid((2, 2, 2), torch.eye(4).numpy())
        scan = Scan(torch.full((2, 2, 2), float(index)), grid)
        return Case(self.identifiers[index], self.subjects[index], {"flair": scan}, synthetic=True)


def test_subset_keeps_order_and_repeats() -> None:
    source = ToySource("toy", ("a", "b", "b"))
    subset = SubsetSource(source, ["b_2", "a_0", "b_2"])
    assert subset.identifiers == ("b_2", "a_0", "b_2")
    assert subset.subjects == ("b", "a", "b")
    assert [subset[index].identifier for index in range(3)] == ["b_2", "a_0", "b_2"]
    with pytest.raises(DataError, match="'c_9'"):
        SubsetSource(source, ["c_9"])


def test_joined_sources_keep_people_apart() -> None:
    joined = JoinedSource("all", [ToySource("x", ("a", "b")), ToySource("y", ("a",))])
    assert joined.identifiers == ("x-a_0", "x-b_1", "y-a_0")
    assert joined.subjects == ("x-a", "x-b", "y-a")
    cases = [joined[index] for index in range(len(joined))]
    assert [case.identifier for case in cases] == list(joined.identifiers)
    assert [case.subject for case in cases] == list(joined.subjects)
    assert all(case.synthetic for case in cases)
    assert float(cases[1].scans["flair"].data[0, 0, 0]) == 1.0
    with pytest.raises(IndexError):
        joined[3]


def test_joined_sources_need_different_names() -> None:
    with pytest.raises(DataError, match="different names"):
        JoinedSource("all", [ToySource("x", ("a",)), ToySource("x", ("b",))])
    with pytest.raises(DataError, match="at least one"):
        JoinedSource("all", [])
