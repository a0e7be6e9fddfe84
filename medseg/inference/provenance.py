"""Hashes that tell whether a prediction would come out the same again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from medseg import __version__
from medseg.inference.settings import PredictSettings
from medseg.scan import Case

#: Raised when the same scan, model and settings come to other files: none is then done before.
RESULTS = 1


def case_sha256(case: Case) -> str:
    """Return a SHA-256 of what a prediction depends on: scans and brain mask, voxels and affines.

    The reference segmentation and the identifier do not count.
    """
    digest = hashlib.sha256()
    members = {**dict(sorted(case.scans.items())), "brain mask": case.brain}
    for name, member in members.items():
        if member is None:
            continue
        values = member.data.cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(np.ascontiguousarray(values.numpy()).data)
        digest.update(np.ascontiguousarray(member.grid.affine).data)
    return digest.hexdigest()


def label_sha256(case: Case) -> str:
    """Return a SHA-256 of the reference segmentation, voxels and affine; "" where there is none."""
    if case.label is None:
        return ""
    digest = hashlib.sha256(np.ascontiguousarray(case.label.data.cpu().numpy()).data)
    digest.update(np.ascontiguousarray(case.label.grid.affine).data)
    return digest.hexdigest()


def settings_to_json(settings: PredictSettings) -> dict[str, Any]:
    """Return settings as plain JSON values."""
    plain: dict[str, Any] = TypeAdapter(PredictSettings).dump_python(settings, mode="json")
    return plain


def settings_sha256(settings: PredictSettings) -> str:
    """Return a SHA-256 of settings."""
    text = json.dumps(settings_to_json(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions a prediction was made with."""
    return {
        "medseg": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def git_commit() -> str | None:
    """Return the commit of the checkout that medseg runs from, "+changes" where it was edited.

    None for an installed package, or where git is not there.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
