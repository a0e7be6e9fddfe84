"""A run's plan is what its record says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.config.build import load_plan
from medseg.config.finished import load_finished
from medseg.errors import ConfigError

CONFIG = {
    "title": "t",
    "sources": {"ms": [{"kind": "phantom", "settings": {"disease": "ms", "n_subjects": 2}}]},
    "target": {"kind": "phantom", "settings": {"disease": "tumour", "n_subjects": 3}},
    "arms": [{"method": {"method": "pr"}, "sources": ["ms"]}],
}


def recorded(folder: Path, overrides: list[str]) -> dict[str, Any]:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return {"config": load_plan(str(path), overrides).config, "config_sha256": "ab12"}


def test_the_plan_is_the_recorded_one_with_what_is_set_anew(tmp_path: Path) -> None:
    record = recorded(tmp_path, ["protocol.few_shot.sizes=[1,2]", "protocol.seed=7"])
    (tmp_path / "run.json").write_text(json.dumps(record))
    plan, key = load_finished(tmp_path)
    assert (plan.config, key) == (record["config"], "ab12")
    other, key = load_finished(tmp_path, ["protocol.few_shot.sizes=[2]"])
    assert (other.protocol.few_shot.sizes, other.protocol.seed, key) == ((2,), 7, "ab12")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "run.json"]


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"config": {}}'])
def test_another_folder_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"RUN must be the folder of an experiment.*run\.json"):
        load_finished(tmp_path)
