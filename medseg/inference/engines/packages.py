"""Optional packages: imported when an engine asks for them, and kept from calling home."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from types import ModuleType

from medseg.errors import ConfigError


def optional_package(name: str) -> ModuleType:
    """Return a package that medseg can do without, imported now.

    Raises
    ------
    ConfigError
        It is not installed, or cannot be loaded.
    """
    _silence_telemetry()
    logger_class = logging.getLoggerClass()
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"this engine needs the package {name}, but it cannot be imported: {error}",
            hint="Install it with `pip install medseg[fast]`, or set engine to torch.",
        ) from error
    finally:
        # nncf puts its own in the place of everybody's.
        logging.setLoggerClass(logger_class)
    if name == "onnxruntime":
        package.disable_telemetry_events()
    return package


def _silence_telemetry() -> None:
    """Keep OpenVINO, NNCF and ONNX Runtime from reporting what they do over the network.

    OpenVINO and NNCF report their import and every conversion through ``openvino_telemetry``, and
    do without where it is missing. So it is made to be missing, which leaves no trace in the user's
    home as their opt-out would. Where somebody else imported it already, nothing is sent from here
    on. ONNX Runtime from 1.29 on, which medseg does not ask for but may find, reports sessions and
    hashes of models, from compiled code that looks at one variable, once, when it is loaded (its
    Privacy.md).
    """
    os.putenv("ORT_DISABLE_TELEMETRY", "1")
    telemetry = sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore
    if telemetry is not None:
        sender = importlib.import_module("openvino_telemetry.utils.sender").TelemetrySender
        sender.send = lambda *_: None
