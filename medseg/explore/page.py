"""The page: hands the sections to the template and writes the file."""

from __future__ import annotations

import logging
from pathlib import Path

from markupsafe import Markup

from medseg.explore.cohort import Cohort
from medseg.explore.sections import SECTIONS
from medseg.explore.view import View
from medseg.io.atomic import write_text
from medseg.report.page import page_environment, template_text

logger = logging.getLogger(__name__)


def write_page(cohort: Cohort, path: Path) -> Path:
    """Write the page about a cohort and return its path.

    It holds its style and pictures itself and needs neither network nor script: the map answers to
    the mouse and the keyboard by style alone. Light or dark as the reader's system is.

    Parameters
    ----------
    cohort : Cohort
    path : Path
    """
    view = View(cohort)
    sections = [build(view) for build in SECTIONS]
    environment = page_environment("medseg.explore")
    style = template_text(environment, "report.css") + template_text(environment, "explore.css")
    html = environment.get_template("explore.html.j2").render(
        title=cohort.title,
        finished=str(cohort.facts.get("finished", "")),
        sections=sections,
        css=Markup(style + _node_styles(cohort)),
        pictures=view.picture_styles(),
        group=view.group,
        legend_of=view.legend,
        count=len(cohort.findings.table),
    )
    write_text(path, html)
    logger.info("page written to %s", path)
    return path


def _node_styles(cohort: Cohort) -> str:
    """Return the rules by which a node that is chosen, or pointed at, shows itself and its scans.

    They stand in for a script: ``:has`` asks which node's button is on.
    """
    rows, columns = cohort.findings.map.grid
    rules = ["#som:has(.som label:hover) .panel { display: none !important; }"]
    for node in range(rows * columns):
        on, over = f"#som:has(#node-{node}:checked)", f"#som:has(.n{node}:hover)"
        rules += [
            f"{on} .n{node}, {over} .n{node} {{ box-shadow: inset 0 0 0 2px #fff, "
            "inset 0 0 0 4px #d55e00; }",
            f"{on} .panel-{node} {{ display: block; }}",
            f"{over} .panel-{node} {{ display: block !important; }}",
        ]
    return "\n" + "\n".join(rules)
