"""Generated cases as a folder that any folder source reads, each marked as generated."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from medseg.data.phantom.cohort import PhantomSource
from medseg.data.regions import Definition
from medseg.errors import ConfigError
from medseg.io.atomic import write_json
from medseg.io.nifti import write_label_map, write_scan
from medseg.scan import Case
from medseg.synthesis.cohort import LearnedSource

log = logging.getLogger(__name__)
_RECORD = "generated.json"
Generating = PhantomSource | LearnedSource


def write_cases(
    source: Generating, out: Path, *, count: int, config: object, definition: Definition
) -> Iterator[Path]:
    """Write the first ``count`` cases of a generated source; yield the folder of each.

    ``OUT/CASE/`` holds an image per modality, ``mask.nii.gz``, ``brainmask.nii.gz`` and, written
    last, ``CASE.json``; a case that has it is kept as it is. ``OUT/generated.json`` says what the
    folder is made of, and how to read it as a data set of kind "folder".

    Parameters
    ----------
    source : PhantomSource or LearnedSource
    out : Path
    count : int
        1 or more.
    config : JSON
        All that the cases depend on: a folder that was begun with another is refused.
    definition : mapping of region to labels

    Raises
    ------
    ConfigError
        The folder holds other cases, or ``count`` is below 1.
    """
    if not 1 <= count <= len(source):
        raise ConfigError(
            f"A number of cases must be in 1..{len(source)}, the length of the source, but it is "
            f"{count}.",
            hint="Raise n_subjects in the settings, or lower --count.",
        )
    _begin(source, out, config, definition)
    for index in range(count):
        folder = out / source.identifiers[index]
        if not (folder / f"{folder.name}.json").is_file():
            _write(source[index], source.provenance(index), folder)
            log.info("%d/%d %s", index + 1, count, folder.name)
        yield folder


def _begin(source: Generating, out: Path, config: object, definition: Definition) -> None:
    key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    path = out / _RECORD
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get("config_sha256") != key:
            raise ConfigError(
                f"A folder holds the cases of one configuration and seed, but {out} holds those of "
                "another.",
                hint="Give another output folder.",
            )
        return
    first = source[0]
    reading = {
        "kind": "folder",
        "settings": {
            "root": str(out),
            "images": {name: "{case}/" + f"{name}.nii.gz" for name in first.scans},
            "label": "{case}/mask.nii.gz",
            "brain": "{case}/brainmask.nii.gz",
            "name": source.name,
        },
        "regions": {name: list(labels) for name, labels in definition.items()},
    }
    record = {
        "synthetic": True,
        "source": source.name,
        "licence": source.licence,
        "citation": source.citation,
        "config": config,
        "config_sha256": key,
        "read_as": reading,
    }
    if isinstance(source, LearnedSource):
        source.lesions.save(out / "lesions")
        record["copy_checks"] = [check.describe() for check in source.lesions.checks]
    write_json(path, record)


def _write(case: Case, provenance: dict[str, object], folder: Path) -> None:
    for name, scan in case.scans.items():
        write_scan(folder / f"{name}.nii.gz", scan)
    volumes = {}
    if case.label is not None:
        write_label_map(folder / "mask.nii.gz", case.label)
        labels = [int(value) for value in case.label.data.unique() if value]
        volumes = {str(value): case.label.volume_ml((value,)) for value in labels}
    if case.brain is not None:
        write_label_map(folder / "brainmask.nii.gz", case.brain)
    write_json(
        folder / f"{case.identifier}.json",
        {
            "identifier": case.identifier,
            "subject": case.subject,
            "synthetic": case.synthetic,
            "volume_ml": volumes,
            **provenance,
        },
    )
