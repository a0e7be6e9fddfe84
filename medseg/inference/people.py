"""Whom a model's training saw, told without names: a model travels, its people's names do not.

A name is kept as ``sha256:SALT:HASH``, with the salt of the model that it was first kept by. Who
has a name can ask whether it is among them; who can guess names can, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_HIDDEN = re.compile(r"sha256:([0-9a-f]{32}):[0-9a-f]{64}")


def hidden_names(names: Iterable[str], *, key: str) -> list[str]:
    """Return names as salted hashes, sorted; those hidden before, by another model, as they are.

    Parameters
    ----------
    names : iterable of str
    key : str
        Of this model alone: its salt comes of it.
    """
    salt = hashlib.sha256(f"salt {key}".encode()).hexdigest()[:32]
    return sorted({name if _HIDDEN.fullmatch(name) else _hidden(name, salt) for name in names})


def seen_among(seen: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return which names are among those seen, sorted.

    Parameters
    ----------
    seen : iterable of str
        Names, as older models keep them, or salted hashes of any number of salts.
    names : iterable of str
        As they are.
    """
    known, asked = frozenset(seen), frozenset(names)
    salts = {found[1] for found in map(_HIDDEN.fullmatch, known) if found}
    return sorted(
        name
        for name in asked
        if name in known or any(_hidden(name, salt) in known for salt in salts)
    )


def _hidden(name: str, salt: str) -> str:
    return f"sha256:{salt}:{hashlib.sha256(f'{salt}{name}'.encode()).hexdigest()}"
