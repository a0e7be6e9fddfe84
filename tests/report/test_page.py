from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from medseg.errors import DataError
from medseg.io.atomic import read_table, write_table
from medseg.report import write_report
from medseg.report.sections import SECTIONS

VOID = {"meta", "link", "br", "img", "hr", "input", "col", "wbr"}
HOSTILE = "<script>alert('$x$')</script>&\"<b>"


class Page(HTMLParser):
    """Collects elements, and refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.values: list[float] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def report_of(folder: Path) -> Page:
    write_report(folder)
    return page_of(folder)


@pytest.fixture(scope="module")
def page(fake_run: Path) -> Page:
    return page_of(fake_run)


def table_cells(html: str, identifier: str) -> list[list[tuple[str, str]]]:
    """Return (data-value, text) of each cell of each row of one table."""
    block = html[html.index(f'id="{identifier}"') :]
    block = block[: block.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", block[block.index("<tbody") :], re.DOTALL)
    cell = re.compile(r"<(t[hd])([^>]*)>(.*?)</\1>", re.DOTALL)
    found = []
    for row in rows:
        cells = []
        for _, attributes, body in cell.findall(row):
            value = re.search(r'data-value="([^"]*)"', attributes)
            words = re.sub(r"<[^>]+>", "", body)
            cells.append((value.group(1) if value else "", " ".join(words.split())))
        found.append(cells)
    return found


def test_every_tag_is_closed_and_every_section_is_there(page: Page) -> None:
    assert page.open == []
    sections = [attrs["id"] for attrs in page.all("section")]
    assert len(sections) == len(SECTIONS) == 13
    links = {attrs.get("href") for attrs in page.all("a")}
    assert {f"#{name}" for name in sections} <= links


def test_identifiers_are_unique_and_links_inside_lead_somewhere(page: Page) -> None:
    found = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(found) == len(set(found)) > 50
    inside = {
        value[1:]
        for _, attrs in page.elements
        for key, value in attrs.items()
        if key in ("href", "xlink:href") and value and value.startswith("#")
    }
    assert inside <= set(found)


def test_nothing_is_loaded_and_nothing_is_run(fake_run: Path, page: Page) -> None:
    assert page.all("script") == []
    for tag, attrs in page.elements:
        for key in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            value = attrs.get(key) or "#"
            outward = not value.startswith(("#", "data:"))
            assert not outward or tag == "a", f"<{tag} {key}={value[:60]}>"
        assert not any(key.startswith("on") for key in attrs)
    html = (fake_run / "report.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)


def test_citations_become_links(page: Page) -> None:
    links = [attrs["href"] for attrs in page.all("a")]
    assert "https://doi.org/10.1109/TMI.2014.2377694" in links
    # The full stop of the sentence is no part of the address.
    assert "https://example.org/10.1000/ms" in links


def test_every_figure_has_words_and_a_caption_with_n(fake_run: Path, page: Page) -> None:
    drawings = [attrs for attrs in page.all("svg") if attrs.get("role") == "img"]
    assert len(drawings) == len(page.all("figure")) == len(page.all("figcaption")) >= 8
    assert all(len(attrs["aria-label"] or "") > 15 for attrs in drawings)
    html = (fake_run / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)
    assert all(re.search(r"\d", caption) for caption in captions)


def test_main_table_shows_the_numbers_of_the_summary(fake_run: Path) -> None:
    html = (fake_run / "report.html").read_text(encoding="utf-8")
    rows = table_cells(html, "methods-table-1")
    summary = [row for row in read_table(fake_run / "summary.tsv") if row["n"] in ("0", "2")]
    shown = {value for row in rows for value, _ in row if value}
    words = " ".join(text for row in rows for _, text in row)
    assert len(rows) == len(summary) / 2 == 5
    for row in summary:
        assert str(float(row["mean_dsc"])) in shown
        low, high = float(row["low_dsc"]), float(row["high_dsc"])
        assert f"{float(row['mean_dsc']):.3f} [{low:.3f}, {high:.3f}]" in words


def test_full_table_shows_every_metric_and_n(fake_run: Path) -> None:
    html = (fake_run / "report.html").read_text(encoding="utf-8")
    rows = [row for row in table_cells(html, "methods-full-1") if len(row) > 1]
    summary = [row for row in read_table(fake_run / "summary.tsv") if row["region"] == "core"]
    assert len(rows) == len(summary) == 8
    shown = {value for row in rows for value, _ in row if value}
    for row in summary:
        for key in ("mean_dsc", "hd95_mm", "volume_error_ml", "lesion_f1", "nll_nats", "ece"):
            assert str(float(row[key])) in shown, key


def test_best_of_a_column_is_bold(fake_run: Path) -> None:
    html = (fake_run / "report.html").read_text(encoding="utf-8")
    block = html[html.index('id="methods-table-1"') :]
    bold = re.findall(r"<strong>([\d.]+)</strong>", block[: block.index("</table>")])
    rows = [row for row in read_table(fake_run / "summary.tsv") if row["n"] in ("0", "2")]
    best = [
        max(float(row["mean_dsc"]) for row in rows if row["region"] == region)
        for region in ("core", "whole")
    ]
    assert sorted(bold) == sorted(f"{value:.3f}" for value in best)


def test_paired_table_shows_the_numbers_of_its_file(fake_run: Path) -> None:
    html = (fake_run / "report.html").read_text(encoding="utf-8")
    rows = read_table(fake_run / "paired.tsv")
    shown = {
        value
        for kind in ("table", "folded")
        for place in (1, 2)
        for row in table_cells(html, f"paired-{kind}-{place}")
        for value, _ in row
    }
    assert {str(float(row["difference_dsc"])) for row in rows} <= shown


def test_hostile_words_are_escaped_everywhere(own_run: Path) -> None:
    for name in ("scores", "summary", "paired", "reliability"):
        rows = read_table(own_run / f"{name}.tsv")
        for row in rows:
            row["source"] = row["source"].replace("ms", HOSTILE)
            row["method"] = row["method"].replace("dwp", HOSTILE)
            row["region"] = row["region"].replace("core", HOSTILE)
            if "case" in row:
                row["case"] += HOSTILE
        write_table(own_run / f"{name}.tsv", rows)
    info = json.loads((own_run / "run.json").read_text())
    info |= {
        "title": HOSTILE,
        "description": HOSTILE,
        "statements": [HOSTILE],
        "regions": [HOSTILE],
    }
    info["cohorts"][0] |= {
        "name": HOSTILE,
        "citation": f"javascript:alert(1) https://x.org/{HOSTILE}",
    }
    info["config"] = {HOSTILE: HOSTILE}
    (own_run / "run.json").write_text(json.dumps(info))
    for path in (own_run / "examples").glob("*.json"):
        about = json.loads(path.read_text())
        path.write_text(json.dumps(about | {"case": HOSTILE, "modalities": [HOSTILE, HOSTILE]}))
    page = report_of(own_run)
    assert page.open == []
    assert page.all("script") == []
    assert page.all("b") == [{}] * len(page.all("b"))
    assert not any((attrs.get("href") or "").startswith("javascript") for attrs in page.all("a"))
    assert page.text.count(HOSTILE) > 10


WHEN_ABSENT = {
    "summary.tsv": "summary.tsv is absent",
    "paired.tsv": "paired.tsv is absent",
    "reliability.tsv": "No reliability table was saved",
    "examples": "No example predictions were saved",
    "histories": "No training histories were saved",
    "priors/ms/held_out.tsv": "No held-out nats were saved for source MS",
    "priors/ms/kernels.safetensors": "No kernels were saved for source MS",
}


def test_what_is_absent_is_said(own_run: Path) -> None:
    before = page_of(own_run).text
    for gone in WHEN_ABSENT:
        path = own_run / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report_of(own_run)
    for words in WHEN_ABSENT.values():
        assert words not in before
        assert words in page.text
    assert len(page.all("section")) == len(SECTIONS)


def test_run_json_and_scores_are_enough(own_run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.json").write_text("{}")
    keys = ("method", "source", "n", "subset", "seed", "case", "region", "dsc")
    rows = [{key: row[key] for key in keys} for row in read_table(own_run / "scores.tsv")]
    write_table(bare / "scores.tsv", rows)
    page = report_of(bare)
    assert page.open == []
    assert len(page.all("section")) == len(SECTIONS)
    assert len(page.all("figure")) == 2
    assert "No filter priors were saved" in page.text


def test_a_threshold_that_knows_no_seed_has_the_same_training_subsets(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    cells = [("threshold", "a", 0), ("ri", "a", 0), ("ri", "a", 1), ("pr", "a", 0), ("pr", "a", 1)]
    rows = [
        {"method": method, "source": "none", "n": 1, "subset": subset, "seed": seed, "case": "b",
         "region": "core", "dsc": 0.5}
        for method, subset, seed in cells
    ]  # fmt: skip
    write_table(tmp_path / "scores.tsv", rows)
    assert "All had the same training subsets." in report_of(tmp_path).text
    write_table(tmp_path / "scores.tsv", rows[:-1])
    assert "Not all had the same training subsets." in report_of(tmp_path).text


def test_scores_of_one_case_without_numbers_do_not_fail(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    row = {"method": "ri", "source": "none", "n": 1, "subset": "0", "seed": 0, "case": "a"}
    write_table(tmp_path / "scores.tsv", [{**row, "region": "core", "dsc": math.nan}])
    assert "there is no answer" in report_of(tmp_path).text


def test_broken_optional_files_are_named(own_run: Path) -> None:
    (own_run / "priors" / "ms" / "kernels.safetensors").write_bytes(b"not a tensor file")
    text = report_of(own_run).text
    assert "priors/ms/kernels.safetensors could not be read" in text


def test_empty_masks_and_2d_kernels_are_drawn(own_run: Path) -> None:
    shape = (2, 12, 14, 6)
    arrays = {"image": np.zeros(shape, np.float32), "probability": np.zeros(shape, np.float32)}
    save_file(
        {**arrays, "truth": np.zeros(shape, np.uint8)}, own_run / "examples" / "zz.safetensors"
    )
    kernels = {
        "real": np.ones((5, 3, 3), np.float32),
        "sampled_vae_layer": np.ones((5, 3, 3), np.float32),
    }
    save_file(kernels, own_run / "priors" / "ms" / "kernels.safetensors")
    text = report_of(own_run).text
    assert "no uncertainty map" in text
    assert "slices of 5 real kernels" in text


def test_the_same_run_gives_the_same_page(own_run: Path) -> None:
    before = (own_run / "report.html").read_bytes()
    assert write_report(own_run) == own_run / "report.html"
    assert (own_run / "report.html").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(own_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold run\.json, but .*nothing"):
        write_report(tmp_path / "nothing")
    (own_run / "scores.tsv").unlink()
    with pytest.raises(DataError, match=r"at least one row of scores"):
        write_report(own_run)
    (own_run / "run.json").write_text("[1]")
    with pytest.raises(DataError, match="holds a list"):
        write_report(own_run)
