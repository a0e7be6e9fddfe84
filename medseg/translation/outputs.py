"""The files of a translation.

For a case ``c``: ``c/c_synthetic_<modality>.nii.gz`` for each scan that was made, and ``c/c.json``
with ``"synthetic": true``, written last: where it stands, the rest is complete.
"""

from __future__ import annotations

from pathlib import Path

from medseg.inference.outputs import case_folder
from medseg.inference.provenance import case_sha256, git_commit, versions
from medseg.io.atomic import write_json
from medseg.io.nifti import write_scan
from medseg.scan import Case
from medseg.translation.apply import translate
from medseg.translation.model import Translator


def write_translation(
    translator: Translator, case: Case, folder: Path, *, model: Path | None = None
) -> Path:
    """Translate a case, write its scans and return the JSON file beside them.

    Parameters
    ----------
    translator : Translator
    case : Case
    folder : Path
        The output folder of all cases; the case gets a folder in it.
    model : Path, optional
        Where the translator came from, for the record.

    Raises
    ------
    MedsegError
        As :func:`medseg.translation.apply.translate`.
    """
    made = translate(translator, case)
    place = case_folder(folder, case.identifier)
    record = place / f"{case.identifier}.json"
    record.unlink(missing_ok=True)
    files = {}
    for name, scan in made.items():
        files[name] = f"{case.identifier}_synthetic_{name}.nii.gz"
        write_scan(place / files[name], scan)
    settings = translator.settings
    used = [name for name in settings.channels if name in case.scans]
    write_json(
        record,
        {
            "case": case.identifier,
            "subject": case.subject,
            "synthetic": True,
            "files": files,
            "made_from": list(files) if settings.method == "super_resolution" else used,
            "method": settings.method,
            "slice_factor": settings.factor if settings.method == "super_resolution" else None,
            "spacing_mm": {name: list(scan.grid.spacing_mm) for name, scan in made.items()},
            "provenance": {
                "input_sha256": case_sha256(case),
                "translator": str(model) if model is not None else None,
                "translator_sha256": translator.fingerprint(),
                "git_commit": git_commit(),
                **versions(),
            },
        },
    )
    return record
