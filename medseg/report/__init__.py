"""One self-contained HTML page, and one plain-text table, about one run folder.

The package reads files only: it never trains, predicts or changes a result. A section is one
function ``(Material) -> Section`` in :mod:`medseg.report.sections` and one block of
``templates/report.html.j2``. To add a section: write the function, add its line to ``SECTIONS``
and its block to the template. To name or colour a new method: one line in
:mod:`medseg.report.arms`. To show a new metric: one line in :mod:`medseg.report.columns`.
"""

from medseg.report.page import write_report
from medseg.report.text import summary_table

__all__ = ["summary_table", "write_report"]
