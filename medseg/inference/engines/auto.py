"""The fastest engine here whose masks are those of the reference, measured once and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from medseg.data.regions import RegionSettings, decode
from medseg.errors import ConfigError, MedsegError, ModelError
from medseg.inference.engines.compiled import network_sha256, versions
from medseg.inference.engines.eager import EagerEngine
from medseg.inference.engines.engine import Engine, EngineChoice, make_engine
from medseg.inference.engines.machine import describe_machine
from medseg.inference.predictor import to_probabilities
from medseg.io.atomic import write_json
from medseg.networks.precision import native_bf16

log = logging.getLogger(__name__)

#: Logits (b, n, *s) to the boolean masks (b, r, *s) of r regions.
Decode = Callable[[Tensor], Tensor]

EAGER = EngineChoice(name="eager")
#: What is tried by default. Those that a machine lacks cost nothing.
CANDIDATES = (
    EngineChoice(name="torch"),
    EngineChoice(name="torch", precision="bf16"),
    EngineChoice(name="torch", precision="float16"),
    EngineChoice(name="openvino"),
    EngineChoice(name="openvino", precision="bf16"),
    EngineChoice(name="openvino", precision="float16"),
    EngineChoice(name="openvino", precision="int8"),
    EngineChoice(name="onnx"),
)
#: Precision -> the least Dice of an engine's masks with those of eager float32.
LEAST_DICE = {"float32": 0.998, "bf16": 0.998, "float16": 0.998, "int8": 0.99}
#: An engine whose first run takes this many times the fastest time so far gets no second.
_HOPELESS = 2.0


@dataclass(frozen=True)
class Trial:
    """What came out for one engine: seconds for the largest example, least Dice of a region."""

    choice: EngineChoice
    verdict: str
    seconds: float | None = None
    dice: float | None = None


@dataclass(frozen=True, eq=False)
class ChosenEngine:
    """An engine, and what it was chosen from."""

    engine: Engine
    choice: EngineChoice
    trials: tuple[Trial, ...]


def region_masks(regions: RegionSettings, *, threshold: float = 0.5) -> Decode:
    """Return the function that decides the masks of regions from logits."""

    def masks(logits: Tensor) -> Tensor:
        cases = [
            decode(case, settings=regions, threshold=threshold)
            # A distilled network has more outputs than regions.
            for case in to_probabilities(logits, mode=regions.mode)[:, : regions.channels]
        ]
        return torch.stack([torch.stack([case[n] for n in regions.names]) for case in cases])

    return masks


def choose_engine(
    network: nn.Module,
    *,
    examples: Sequence[Tensor],
    decode: Decode,
    cache: Path | None = None,
    candidates: Sequence[EngineChoice] = CANDIDATES,
    allow_int8: bool = False,
    least_dice: Mapping[str, float] = LEAST_DICE,
) -> ChosenEngine:
    """Return the fastest engine whose masks agree with those of eager float32.

    Each candidate that can be had here runs on every example. One is refused where, for any region,
    the Dice of its masks with the reference's, pooled over the examples, is below what its
    precision is allowed; no engine is taken on trust: where the reference finds no region in any
    example, the masks prove nothing and the reference itself is the answer. The decision is kept in
    ``cache``, for this network, machine and set of versions.

    Parameters
    ----------
    network : nn.Module
        Deterministic, or variational and represented by its mean weights.
    examples : sequence of Tensor, each of shape (b, c, *s)
        Prepared images with something to find. The largest is timed: give it the size of the
        windows to come. They calibrate int8 too.
    decode : callable
        Logits to masks; see :func:`region_masks`.
    cache : Path, optional
        Keeps the decision and compiled forms. Never the folder of the input.
    candidates : sequence of EngineChoice
        Those of torch run on the device of the network.
    allow_int8 : bool
        Whether int8 is tried.
    least_dice : mapping of precision to float

    Raises
    ------
    ConfigError
        There are no examples.
    """
    if not examples:
        raise ConfigError(
            "an engine is chosen by running it on examples, but there are none",
            hint="Give prepared images, or name the engine.",
        )
    device = EagerEngine(network).device
    tried = [replace(c, device=str(device)) if c.name == "torch" else c for c in candidates]
    key = {
        "network": network_sha256(network),
        "machine": describe_machine(device),
        "versions": versions(),
        "candidates": [asdict(choice) for choice in tried],
        "allow_int8": allow_int8,
        "least_dice": dict(least_dice),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = None if cache is None else Path(cache) / f"engine-choice-{name}.json"
    known = _recalled(path, network, cache=cache)
    if known is not None:
        return known
    judge = _Judge(network, examples, decode)
    if not judge.finds_something:
        log.warning("engine eager: the network finds nothing in the examples to compare masks by")
        return ChosenEngine(judge.engine, EAGER, ())
    chosen = _fastest(judge, tried, cache=cache, allow_int8=allow_int8, least_dice=least_dice)
    if path is not None:
        trials = [asdict(trial) for trial in chosen.trials]
        try:
            write_json(path, {"choice": asdict(chosen.choice), "trials": trials, **key})
        except OSError as error:
            log.warning("the choice of an engine is not kept for the next run: %s", error)
    return chosen


def _recalled(path: Path | None, network: nn.Module, *, cache: Path | None) -> ChosenEngine | None:
    """Return what was chosen before, or None where that is not known or no longer to be had.

    Without images to calibrate int8: made anew, it would not be the engine that was compared.
    """
    if path is None or not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        choice = TypeAdapter(EngineChoice).validate_python(record["choice"])
        trials = TypeAdapter(tuple[Trial, ...]).validate_python(record["trials"])
        engine = make_engine(choice, network, cache=cache)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the engine is chosen again: %s: %s", path, error)
        return None
    log.info("engine %s, as measured before (%s)", choice, path.name)
    return ChosenEngine(engine, choice, trials)


class _Judge:
    """Eager float32 on the examples, and how another engine's masks compare with its own."""

    def __init__(self, network: nn.Module, examples: Sequence[Tensor], decode: Decode) -> None:
        self.network, self.examples, self._decode = network, examples, decode
        self.engine = EagerEngine(network)
        self._largest = max(range(len(examples)), key=lambda i: examples[i].numel())
        self._masks, first = self.run(self.engine)
        self.seconds = min(first, self.time(self.engine))

    @property
    def finds_something(self) -> bool:
        return any(bool(masks.any()) for masks in self._masks)

    def run(self, engine: Engine) -> tuple[list[Tensor], float]:
        """Return the masks of all examples, and the seconds for the largest."""
        masks, seconds = [], 0.0
        for index, images in enumerate(self.examples):
            start = time.perf_counter()
            logits = engine(images)
            if index == self._largest:
                seconds = time.perf_counter() - start
            if not bool(logits.isfinite().all()):
                raise ModelError(
                    f"logits must be finite, but those of {tuple(images.shape)} images are not",
                    hint="Look for NaN in the scan or the weights.",
                )
            masks.append(self._decode(logits))
        return masks, seconds

    def time(self, engine: Engine) -> float:
        """Return the seconds for the largest example."""
        start = time.perf_counter()
        engine(self.examples[self._largest])
        return time.perf_counter() - start

    def dice(self, masks: Sequence[Tensor]) -> float:
        """Return the least Dice of a region with the reference, pooled over all examples."""
        pairs = list(zip(masks, self._masks, strict=True))
        both = torch.stack([_voxels(a & b) for a, b in pairs]).sum(0)
        either = torch.stack([_voxels(a) + _voxels(b) for a, b in pairs]).sum(0)
        # A region that neither finds agrees.
        return float(torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0).min())


def _voxels(masks: Tensor) -> Tensor:
    """Return the voxels of each region, (r,), over a batch of masks (b, r, *s)."""
    return masks.flatten(2).sum(dim=(0, 2)).double()


def _fastest(
    judge: _Judge,
    candidates: Sequence[EngineChoice],
    *,
    cache: Path | None,
    allow_int8: bool,
    least_dice: Mapping[str, float],
) -> ChosenEngine:
    fastest: tuple[float, EngineChoice, Engine] = (judge.seconds, EAGER, judge.engine)
    trials = [Trial(EAGER, _AGREES, judge.seconds, 1.0)]
    for choice in candidates:
        reason = _unsuitable(choice, judge.engine.device, allow_int8=allow_int8)
        if reason:
            trials.append(Trial(choice, f"not tried: {reason}"))
            continue
        trial, engine = _try(choice, judge, cache=cache, bar=least_dice, fastest=fastest[0])
        trials.append(trial)
        if engine is not None and trial.seconds is not None and trial.seconds < fastest[0]:
            fastest = (trial.seconds, choice, engine)
    _, chosen, engine = fastest
    trials = [_in_words(trial, chosen) for trial in trials]
    for trial in trials:
        level = logging.WARNING if trial.verdict.startswith(_REFUSED) else logging.INFO
        log.log(level, "engine %s %s", trial.choice, trial.verdict)
    return ChosenEngine(engine, chosen, tuple(trials))


_AGREES, _REFUSED = "agrees", "refused"


def _unsuitable(choice: EngineChoice, device: torch.device, *, allow_int8: bool) -> str:
    """Return why an engine is not worth a try, empty where it is."""
    if choice.precision == "int8" and not allow_int8:
        return "int8 was not allowed"
    if choice.name != "torch" and device.type != "cpu":
        return f"it computes on the processor, and the network is on {device}"
    native, reason = native_bf16(device)
    if choice.name == "torch" and choice.precision == "bf16" and not native:
        return reason
    return ""


def _try(
    choice: EngineChoice,
    judge: _Judge,
    *,
    cache: Path | None,
    bar: Mapping[str, float],
    fastest: float,
) -> tuple[Trial, Engine | None]:
    """Return what came out for an engine, and the engine where its masks agree."""
    try:
        engine = make_engine(choice, judge.network, cache=cache, calibration=judge.examples)
        masks, seconds = judge.run(engine)
        if seconds < _HOPELESS * fastest:
            seconds = min(seconds, judge.time(engine))
    except MedsegError as error:
        return Trial(choice, f"cannot be had: {error}"), None
    except Exception as error:
        # Compilers of others fail in ways of their own; the reference is there all the same.
        return Trial(choice, f"failed: {type(error).__name__}: {error}"), None
    dice, least = judge.dice(masks), bar[choice.precision]
    if dice < least:
        verdict = f"{_REFUSED}: its masks have Dice {dice:.4f} with eager float32, below {least}"
        return Trial(choice, verdict, seconds, dice), None
    return Trial(choice, _AGREES, seconds, dice), engine


def _in_words(trial: Trial, chosen: EngineChoice) -> Trial:
    if trial.verdict != _AGREES:
        return trial
    verdict = "chosen" if trial.choice == chosen else f"slower than {chosen}"
    return replace(trial, verdict=f"{verdict}: {trial.seconds:.3g} s, Dice {trial.dice:.4f}")
