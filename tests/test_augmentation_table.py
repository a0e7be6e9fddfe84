import json
from pathlib import Path

import pytest

from tools.augmentation.__main__ import main


@pytest.mark.slow
def test_the_table_pairs_every_augmentation(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--quick", "--parts", "phantom"]) == 0
    text = json.loads((tmp_path / "augmentation.json").read_text(encoding="utf-8"))
    assert text["quick"] is True
    assert {row["augmentation"] for row in text["rows"]} == {
        "painted, lesions of the source",
        "painted, lesions of the training cases",
        "source handmade",
        "source random",
        "source learned",
    }
    assert all(row["n_subjects"] == 2 for row in text["rows"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/*/scores.tsv")}
    assert main([str(tmp_path), "--quick", "--parts", "phantom"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "| phantom | source learned |" in (tmp_path / "augmentation.md").read_text("utf-8")
