"""Which device and which number format to compute with, and why."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from medseg.errors import ConfigError

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bf16"]

#: Processor features with which bf16 products are an instruction and not an emulation.
NATIVE_BF16_FEATURES = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device: the first CUDA one where there is any, else the CPU, or the one named.

    Parameters
    ----------
    name : str
        "auto", or a torch device such as "cpu", "cuda", "cuda:1".

    Raises
    ------
    ConfigError
        When the name is no device, or the device is not there.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        reason = "torch sees a GPU" if device.type == "cuda" else "torch sees no CUDA GPU"
        log.debug("device %s: %s", device, reason)
        return device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"a device is 'auto', 'cpu', 'cuda' or 'cuda:<number>', but it is {name!r}",
            hint="Set device to auto.",
        ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees {count} CUDA devices",
            hint="Set device to auto or cpu, or install torch's build for this GPU.",
        )
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the network's products, `torch.float32` or `torch.bfloat16`.

    "auto" takes bf16 only where the device multiplies it natively: torch computes it on any
    processor, but hundreds of times slower than float32 where it must be emulated.

    Parameters
    ----------
    name : {"auto", "float32", "bf16"}
    device : torch.device

    Raises
    ------
    ConfigError
        When the name is none of these.
    """
    if name not in ("auto", "float32", "bf16"):
        raise ConfigError(
            f"a precision is 'auto', 'float32' or 'bf16', but it is {name!r}",
            hint="Set precision to auto.",
        )
    native, reason = native_bf16(device)
    if name == "bf16" and not native:
        log.warning("precision bf16 as asked for, but it will be very slow: %s", reason)
    if name == "bf16" or (name == "auto" and native):
        log.debug("precision bf16 on %s: %s", device, reason)
        return torch.bfloat16
    why = "as asked for" if name == "float32" else reason
    log.debug("precision float32 on %s: %s", device, why)
    return torch.float32


def native_bf16(device: torch.device) -> tuple[bool, str]:
    """Return whether the device multiplies bf16 natively, and the reason in words."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"the GPU {'has' if native else 'lacks'} native bf16"
    if device.type != "cpu":
        return False, f"bf16 is not tried on {device.type} devices"
    features = _cpu_bf16_features()
    if features:
        return True, f"the processor has {' and '.join(features)}"
    return False, (
        f"the processor has none of {', '.join(NATIVE_BF16_FEATURES)} "
        f"(torch uses its {torch.backends.cpu.get_cpu_capability()} kernels)"
    )


def _cpu_bf16_features() -> list[str]:
    """Return the features of this processor that multiply bf16.

    Not `torch.ops.mkldnn._is_mkldnn_bf16_supported`: on x86 that is true of any AVX-512 processor,
    where bf16 works but is slower than float32.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return [feature for feature in NATIVE_BF16_FEATURES if found.get(feature, False)]
    # Older torch has only these two, private, and nothing for ARM.
    older = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return [feature for feature, check in older.items() if getattr(torch.cpu, check, bool)()]
