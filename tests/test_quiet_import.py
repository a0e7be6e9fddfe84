"""Importing medseg costs nothing, says nothing and calls nobody."""

import json
import subprocess
import sys

import pytest

# Run in a fresh interpreter: audit hooks cannot be removed, and this one has torch already.
SCRIPT = """
import json, sys
events = []
def hook(event, args):
    if event.startswith(("socket.", "subprocess.", "os.system", "urllib.")):
        events.append(event)
sys.addaudithook(hook)
import {module}
heavy = [n for n in ("torch", "monai", "numpy", "nibabel", "scipy", "pydantic") if n in sys.modules]
sys.stderr.write(json.dumps(dict(events=events, heavy=heavy)))
"""


@pytest.mark.parametrize("module", ["medseg", "medseg.cli.main"])
def test_importing_is_quiet_and_light(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", SCRIPT.format(module=module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = json.loads(done.stderr)
    assert found == {"events": [], "heavy": []}
