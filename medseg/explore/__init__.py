"""What is in a cohort: which scans are alike, which are odd, and how much they really vary.

From scans (:mod:`~medseg.explore.items`) to numbers (:mod:`~medseg.explore.features`,
:mod:`~medseg.explore.lesions`, one scan in memory at a time, resumable:
:mod:`~medseg.explore.extract`), from numbers to a clean table (:mod:`~medseg.explore.table`), from
the table to findings (maps, embeddings, codes, groups, unusual scans: one module each, joined in
:mod:`~medseg.explore.findings`), and to one page (:mod:`~medseg.explore.page`).

To add a feature: compute it in ``features.py`` or ``lesions.py``, name it in ``names.py``. To add a
section to the page: one function in ``sections.py``, its line in ``SECTIONS``, its block in
``templates/explore.html.j2`` where it shows more than pictures and tables.
"""

from medseg.explore.cohort import Cohort, ExploreSettings
from medseg.explore.run import explore_scans, explore_table

__all__ = ["Cohort", "ExploreSettings", "explore_scans", "explore_table"]
