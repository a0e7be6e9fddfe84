"""How the C allocator hands memory back, which on the CPU is part of a training step's time."""

from __future__ import annotations

import ctypes
import logging

log = logging.getLogger(__name__)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 1 << 30
_NEVER_TRIM = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let this process keep large freed blocks for reuse; return whether the allocator agreed.

    Every step of a training frees and asks for the same tens of megabytes. By default glibc gives
    them to the system and each step pays for having the pages mapped and zeroed again (a sixth of
    a step of the small network). The setting holds for the whole process until it ends, so this is
    for a program's start, not for a library's depths. It does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        log.info("memory: no glibc, the allocator keeps its defaults")
        return False
    agreed = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) == 1
    agreed = mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM) == 1 and agreed
    log.info("memory: freed blocks are %s", "kept for reuse" if agreed else "not kept")
    return agreed
