"""The page: hands the sections to the template and writes the file."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from medseg.io.atomic import write_text
from medseg.report.answer import answer_for
from medseg.report.run_folder import read_run
from medseg.report.sections import SECTIONS, Material
from medseg.report.statistics import summaries

logger = logging.getLogger(__name__)

_WEB_ADDRESS = re.compile(r"https?://[^\s<>\"']+[^\s<>\"'.,;)\]]")


def linked(text: object) -> Markup:
    """Return ``text`` escaped, with its web addresses as links."""
    words, parts, place = str(text), [], 0
    for match in _WEB_ADDRESS.finditer(words):
        parts.append(escape(words[place : match.start()]))
        link = Markup('<a href="{0}" rel="noopener noreferrer">{0}</a>')
        parts.append(link.format(match.group()))
        place = match.end()
    return Markup("").join([*parts, escape(words[place:])])


def page_environment(*packages: str) -> Environment:
    """Return what renders pages from the templates of ``packages``, then of the report's own."""
    loaders = [PackageLoader(name, "templates") for name in (*packages, "medseg.report")]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["linked"] = linked
    return environment


def template_text(environment: Environment, name: str) -> str:
    """Return a template as it stands, such as a style sheet."""
    text, *_ = environment.loader.get_source(environment, name)  # pyright: ignore[reportOptionalMemberAccess]
    return text


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    The page holds its style and figures itself: it needs no network and no script, and can be
    mailed, archived or printed as it is.

    Parameters
    ----------
    run_folder : Path
        What an experiment wrote; see :mod:`medseg.report.run_folder` for the files.

    Raises
    ------
    DataError
        When run.json or scores.tsv is absent, or holds nothing.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    rows = summaries(run)
    answers = [answer for region in run.regions if (answer := answer_for(run, region))]
    material = Material(run, rows, answers)
    sections = [build(material) for build in SECTIONS]
    environment = page_environment()
    css = template_text(environment, "report.css")
    html = environment.get_template("report.html.j2").render(
        title=str(run.info.get("title") or folder.name),
        description=str(run.info.get("description") or ""),
        started=str(run.info.get("started") or ""),
        seed=str(run.info.get("seed", "")),
        synthetic=any(
            isinstance(cohort, dict) and cohort.get("synthetic")
            for cohort in run.info.get("cohorts") or []
        ),
        regions=run.regions,
        modalities=[str(name) for name in run.info.get("modalities") or []],
        sections=sections,
        css=Markup(css),
    )
    path = folder / "report.html"
    write_text(path, html)
    logger.info("report written to %s", path)
    return path
