"""A cohort that was looked at: what page and files tell of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medseg.batch.run import Failure
from medseg.explore.extract import Extracted
from medseg.explore.findings import Findings
from medseg.settings import settings


@settings
class ExploreSettings:
    """How a cohort is looked at."""

    #: Of everything that draws.
    seed: int = 0
    #: Show the names of cases on the page. They are folder names, which in a clinic name people:
    #: by default scans are numbered, and ``scans.csv`` says which is which.
    show_names: bool = False


@dataclass(frozen=True, eq=False)
class Cohort:
    """What the page and the files tell of.

    Parameters
    ----------
    title, command : str
    findings : Findings
    extracted : Extracted, optional
        None for a cohort that came as a table.
    failures : sequence of Failure
    settings : ExploreSettings
    facts : mapping
        Seconds, versions.
    """

    title: str
    command: str
    findings: Findings
    extracted: Extracted | None
    failures: Sequence[Failure]
    settings: ExploreSettings
    facts: Mapping[str, object]

    def labels(self) -> list[str]:
        """Return how each scan is called on the page."""
        names = self.findings.table.identifiers
        if self.settings.show_names:
            return list(names)
        digits = len(str(len(names)))
        return [f"scan {number:0{digits}d}" for number in range(1, len(names) + 1)]
