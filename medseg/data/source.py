"""What a data set is: cases by number, whose they are, and under which terms they may be used.

A :class:`CaseSource` reads nothing until a case is asked for, so that a data set of a thousand
scans can be listed, split and counted in a moment. To add one, see :mod:`medseg.data.sources`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from medseg.errors import DataError
from medseg.scan import Case


class CaseSource(Protocol):
    """A sized, indexable data set."""

    @property
    def name(self) -> str:
        """Short name for tables and reports."""
        ...

    @property
    def licence(self) -> str:
        """Terms of use of the scans."""
        ...

    @property
    def citation(self) -> str:
        """Whom to cite."""
        ...

    @property
    def identifiers(self) -> tuple[str, ...]:
        """One per case, unique, in the order of the index; known without reading a voxel."""
        ...

    @property
    def subjects(self) -> tuple[str, ...]:
        """The person behind each case, in the same order: two visits of one person share it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case:
        """Read or generate one case; the same index gives the same voxels every time.

        Raises
        ------
        IndexError
            The index is not in ``-len .. len - 1``; negative ones count from the end.
        """
        ...


def check_index(index: int, length: int) -> int:
    """Return ``index`` as one of ``0 .. length - 1``; a negative one counts from the end.

    Raises
    ------
    IndexError
        It is not in ``-length .. length - 1``. (Python's own iteration ends on this error.)
    """
    if not -length <= index < length:
        raise IndexError(f"A case index must be in {-length}..{length - 1}, but it is {index}.")
    return index % length


class SubsetSource:
    """The named cases of another source, in the given order; a case named twice appears twice.

    Parameters
    ----------
    source : CaseSource
        Where the cases are.
    identifiers : sequence of str
        Which of them.

    Raises
    ------
    DataError
        An identifier is not in the source.
    """

    def __init__(self, source: CaseSource, identifiers: Sequence[str]) -> None:
        positions = {identifier: index for index, identifier in enumerate(source.identifiers)}
        unknown = [identifier for identifier in identifiers if identifier not in positions]
        if unknown:
            raise DataError(
                f"Cases must be in source {source.name!r}, but it has no {unknown[:5]}.",
                hint=f"It has {len(positions)} cases: {', '.join(sorted(positions)[:5])}, ...",
            )
        self._source = source
        self._indices = tuple(positions[identifier] for identifier in identifiers)
        self.name = source.name
        self.licence = source.licence
        self.citation = source.citation

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Identifier of each case."""
        return tuple(self._source.identifiers[index] for index in self._indices)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject of each case."""
        return tuple(self._source.subjects[index] for index in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Case:
        return self._source[self._indices[check_index(index, len(self))]]


class JoinedSource:
    """Several sources one after the other, their names prefixed so that they stay apart.

    ``patient07`` of two hospitals are two people: a subject becomes ``<source name>-<subject>``.
    Visits of one person must therefore stay in one source.

    Parameters
    ----------
    name : str
        Name of the whole.
    sources : sequence of CaseSource
        At least one; their names must differ.

    Raises
    ------
    DataError
        No source, or two of one name.
    """

    def __init__(self, name: str, sources: Sequence[CaseSource]) -> None:
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise DataError(
                f"Joined sources must have different names, at least one, but they are {names}.",
                hint="Set 'name' in the settings of each source.",
            )
        self.name = name
        self._sources = tuple(sources)
        self._places = tuple(
            (source, index) for source in self._sources for index in range(len(source))
        )
        self.licence = "; ".join(f"{source.name}: {source.licence}" for source in sources)
        self.citation = "; ".join(f"{source.name}: {source.citation}" for source in sources)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Identifier of each case, prefixed."""
        return tuple(f"{s.name}-{name}" for s in self._sources for name in s.identifiers)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject of each case, prefixed."""
        return tuple(f"{s.name}-{name}" for s in self._sources for name in s.subjects)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Case:
        source, place = self._places[check_index(index, len(self))]
        case = source[place]
        return Case(
            identifier=f"{source.name}-{case.identifier}",
            subject=f"{source.name}-{case.subject}",
            scans=case.scans,
            label=case.label,
            brain=case.brain,
            synthetic=case.synthetic,
        )
