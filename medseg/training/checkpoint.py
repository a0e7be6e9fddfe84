"""State of a training on disk: tensors as safetensors, the rest as JSON; never a pickle."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medseg.errors import TrainingError
from medseg.io.atomic import atomic_path, file_sha256, write_json

log = logging.getLogger(__name__)

_TENSORS, _STATE = "checkpoint-{step}.safetensors", "checkpoint.json"
Rows = list[dict[str, float]]


@dataclass
class TrainingState:
    """Everything that decides how a training goes on.

    Parameters
    ----------
    step : int
        Steps done.
    best_score : float
        Best validation score so far.
    best_step : int
        Where it was reached; -1 for nowhere.
    history : list of dict
        Rows of the log so far.
    """

    step: int = 0
    best_score: float = float("-inf")
    best_step: int = -1
    history: Rows = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its state.

    Parameters
    ----------
    folder : Path
    key : str
        Hash of all else that the training depends on; a state with another key is refused.
    data : str
        Hash of its cases; a state with others is left, with a warning, and training starts anew.
    resume : bool
        Go on from the state that is there, if there is one.
    every_steps : int
        How often the state is written.
    """

    folder: Path
    key: str
    data: str = ""
    resume: bool = True
    every_steps: int = 200

    def save(self, state: TrainingState, tensors: dict[str, Tensor]) -> None:
        """Write the state: tensors first, then the JSON that names and hashes them."""
        path = self.folder / _TENSORS.format(step=state.step)
        with atomic_path(path) as temporary:
            save_file({name: _plain(value) for name, value in tensors.items()}, temporary)
        write_json(
            self.folder / _STATE,
            {
                "key": self.key,
                "data": self.data,
                "tensors": path.name,
                "sha256": file_sha256(path),
                "step": state.step,
                "best_score": None if state.best_step < 0 else state.best_score,
                "best_step": state.best_step,
                "history": state.history,
            },
        )
        self._remove_tensors(but=path)

    def load(self) -> tuple[TrainingState, dict[str, Tensor]] | None:
        """Return the saved state and tensors, or None when there is nothing to resume.

        Raises
        ------
        TrainingError
            The state is of another training, or damaged.
        """
        path = self.folder / _STATE
        if not self.resume or not path.is_file():
            return None
        saved = _read_state(path)
        if saved["key"] != self.key:
            raise TrainingError(
                f"A training resumes with the data and settings it began with, but {path} was "
                "written with others.",
                hint="Give another output folder, or restore the old settings.",
            )
        if saved.get("data", "") != self.data:
            log.warning("scans or masks changed since %s: the training starts anew", path)
            return None
        tensors = self.folder / saved["tensors"]
        if not tensors.is_file() or file_sha256(tensors) != saved["sha256"]:
            raise TrainingError(
                f"The tensors of a checkpoint must be those its JSON names, but {tensors} is not.",
                hint="Delete the checkpoint folder and start this training again.",
            )
        best = saved["best_score"]
        state = TrainingState(
            step=saved["step"],
            best_score=float("-inf") if best is None else best,
            best_step=saved["best_step"],
            history=saved["history"],
        )
        return state, load_file(tensors)

    def clear(self) -> None:
        """Remove the state of a training that is finished and saved elsewhere."""
        (self.folder / _STATE).unlink(missing_ok=True)
        self._remove_tensors()

    def _remove_tensors(self, *, but: Path | None = None) -> None:
        # With the first star also what a killed process had not finished writing.
        for path in self.folder.glob("*" + _TENSORS.format(step="*")):
            if path != but:
                path.unlink(missing_ok=True)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(
            f"A checkpoint is described in JSON, but {path} is not: {error}.",
            hint="Delete the checkpoint folder and start this training again.",
        ) from error
    return saved


def module_tensors(prefix: str, module: nn.Module | None) -> dict[str, Tensor]:
    """Return a module's state under names that begin with ``prefix``."""
    state = {} if module is None else module.state_dict()
    return {f"{prefix}.{name}": value for name, value in state.items()}


def load_module(prefix: str, module: nn.Module | None, tensors: dict[str, Tensor]) -> None:
    """Put what :func:`module_tensors` returned back into the module."""
    if module is not None:
        module.load_state_dict(_under(prefix, tensors))


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's moments, named by the number of their parameter."""
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser.{number}.{name}": torch.as_tensor(value)
        for number, moments in state.items()
        for name, value in moments.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put what :func:`optimiser_tensors` returned back into the optimiser."""
    whole = optimiser.state_dict()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimiser", tensors).items():
        number, name = key.split(".", 1)
        if value.shape == parameters[int(number)].shape:
            # Fused optimisers walk the memory of parameter and moments side by side.
            value = torch.empty_like(parameters[int(number)], dtype=value.dtype).copy_(value)
        moments.setdefault(int(number), {})[name] = value
    whole["state"] = moments
    optimiser.load_state_dict(whole)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
