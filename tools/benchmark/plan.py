"""What is measured, at full size and at the size of a smoke check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Every row's agreement is with the mask of this one.
REFERENCE = "medseg eager float32"
PHANTOM = "phantom"

#: Engine and precision by name; those that a machine lacks get a row that says so.
ENGINES: dict[str, tuple[str, str]] = {
    "eager float32": ("eager", "float32"),
    "torch float32": ("torch", "float32"),
    "torch bf16": ("torch", "bf16"),
    "OpenVINO float32": ("openvino", "float32"),
    "OpenVINO bf16": ("openvino", "bf16"),
    "OpenVINO float16": ("openvino", "float16"),
    "OpenVINO int8": ("openvino", "int8"),
    "ONNX Runtime float32": ("onnx", "float32"),
    "auto": ("auto", "auto"),
}
#: Engines that are measured with the other two profiles too.
FAST = ("torch float32", "OpenVINO float32", "OpenVINO bf16", "OpenVINO float16", "OpenVINO int8")
BEST = ("torch float32",)


def contender(engine: str, profile: str = "default") -> str:
    """Return the name of a row of medseg."""
    return f"medseg {engine}" + ("" if profile == "default" else f", {profile}")


#: Rows of medseg by name: engine, precision and profile.
OURS: dict[str, dict[str, Any]] = {
    contender(name, profile): {"engine": engine, "precision": precision, "profile": profile}
    for profile, names in (("default", tuple(ENGINES)), ("fast", FAST), ("best", BEST))
    for name in names
    for engine, precision in (ENGINES[name],)
}
#: The default profile, held to about the least that this network can do with on such a volume.
BOUND_GIB = 1.75
OURS[f"medseg torch float32 within {BOUND_GIB} GiB"] = {
    **OURS[contender("torch float32")],
    "memory_gib": BOUND_GIB,
}
NNUNET, NNUNET_MIRRORED = "nnU-Net, no mirroring", "nnU-Net, mirroring"
MONAI, MONAI_WHOLE = "MONAI, same crop", "MONAI, uncropped"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The sizes of one run; lengths in voxels."""

    name: str
    #: Network: channels per level.
    widths: tuple[int, ...]
    #: The phantom scan, what of it is not empty around the head, and its voxel size.
    volume: tuple[int, int, int]
    view: tuple[int, int, int]
    spacing_mm: float
    #: Side of the peers' windows, as MONAI's and nnU-Net's users set it for such volumes.
    roi: int
    #: Training of the benchmark's weights: side of the patches, steps and learning rate, stage by
    #: stage. The last stage sees patches nearly as large as windows, whose statistics differ.
    train_subjects: int
    train_stages: tuple[tuple[int, int, float], ...]
    #: Side of the patch on which the mapped weights are proved equal.
    probe: int
    #: Sides of the cubes for cost against volume; the peers get fewer.
    cubes: tuple[int, ...]
    peer_cubes: tuple[int, ...]
    #: Cube and numbers of posterior samples.
    posterior_cube: int
    samples: tuple[int, ...]
    #: Numbers of scans in a batch.
    scans: tuple[int, ...]
    #: Engines, profiles and real scans: all, or a few for a smoke check.
    thorough: bool = True
    #: Training steps: network, side of the patch, patches in a step, timed steps.
    step_networks: dict[str, int] = field(default_factory=dict)
    step_batch: int = 2
    steps: int = 2
    #: Side of the matrices, and channels and side of the image, for the chip's peak.
    matrix: int = 4096
    convolution: tuple[int, int] = (64, 96)


FULL = Scale(
    name="full",
    widths=(32, 64, 128, 256, 320, 320),
    volume=(240, 240, 155),
    view=(240, 240, 140),
    spacing_mm=1.0,
    roi=128,
    train_subjects=3,
    train_stages=((48, 300, 2e-3), (96, 30, 1e-3), (128, 8, 5e-4)),
    probe=64,
    cubes=(64, 96, 128),
    peer_cubes=(64, 128),
    posterior_cube=96,
    samples=(1, 10),
    scans=(1, 8),
    step_networks={"unet_3d": 64, "unet_short_3d": 56},
)
QUICK = Scale(
    name="quick",
    widths=(8, 16, 32),
    volume=(64, 76, 64),
    view=(64, 76, 48),
    spacing_mm=3.0,
    roi=32,
    train_subjects=2,
    train_stages=((32, 40, 2e-3),),
    probe=32,
    cubes=(24, 48),
    peer_cubes=(24, 48),
    posterior_cube=32,
    samples=(1, 3),
    scans=(1, 2),
    thorough=False,
    step_networks={"unet_3d": 32},
    steps=2,
    matrix=1024,
    convolution=(32, 32),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One process: which function of which module, in which environment.

    Parameters
    ----------
    section, name : str
        Where its row goes; a pair is unique.
    call : str
        ``module:function`` below ``tools.benchmark``.
    arguments : dict
        JSON values.
    peers : bool
        In the peers' environment.
    """

    section: str
    name: str
    call: str
    arguments: dict[str, Any]
    peers: bool = False


def chosen(scale: Scale, case: str) -> list[str]:
    """Return the rows of medseg that are measured on a case, the reference first."""
    if case == PHANTOM and scale.thorough:
        return list(OURS)
    few = ("torch float32", "OpenVINO float32", "OpenVINO float16", "OpenVINO int8")
    names = [contender(engine) for engine in few]
    return [REFERENCE, *names, contender("torch float32", "fast"), contender(few[-1], "fast")]


def compile_tasks(*, folder: str) -> list[Task]:
    """Return the conversions, each once: what is measured after it finds them in the cache."""
    return [
        Task(
            section="compile",
            name=name,
            call="ours:compiled",
            arguments={"folder": folder, "engine": engine, "precision": precision},
        )
        for name, (engine, precision) in ENGINES.items()
        if engine in ("openvino", "onnx", "auto")
    ]


def inference_tasks(
    scale: Scale, cases: list[str], *, folder: str, repeats: int, all_windows: bool
) -> list[Task]:
    """Return every contender on every case; the reference comes first, others compare with it."""
    tasks = []
    for case in cases:
        base = {"folder": folder, "case": case, "repeats": repeats}
        tasks += [
            Task(
                section=case,
                name=name,
                call="ours:predict",
                arguments={**base, "name": name, "wanted": OURS[name]},
            )
            for name in chosen(scale, case)
        ]
        peers: dict[str, tuple[str, dict[str, Any]]] = {NNUNET: ("peers:nnunet", {})}
        if case == PHANTOM:
            one = {"one_window": not all_windows}
            peers[MONAI] = ("peers:monai", {})
            peers[MONAI_WHOLE] = ("peers:monai", {"whole": True, **one})
            peers[NNUNET_MIRRORED] = ("peers:nnunet", {"mirrored": True, **one})
        tasks += [
            Task(
                section=case,
                name=name,
                call=call,
                peers=True,
                arguments={**base, "repeats": 1, "name": name, "roi": scale.roi, **extra},
            )
            for name, (call, extra) in peers.items()
        ]
    return tasks


def scaling_tasks(scale: Scale, *, folder: str) -> list[Task]:
    """Return cost against volume, samples and scans."""
    base = {"folder": folder, "cubes": list(scale.cubes)}
    rows = [contender(name) for name in ("torch float32", "OpenVINO float32", "OpenVINO int8")]
    tasks = [
        Task(
            section="volume", name=name, call="ours:cubes", arguments={**base, "wanted": OURS[name]}
        )
        for name in rows
    ]
    small = {"folder": folder, "cubes": list(scale.peer_cubes), "roi": scale.roi}
    tasks += [
        Task(section="volume", name=MONAI, call="peers:monai_cubes", arguments=small, peers=True),
        Task(section="volume", name=NNUNET, call="peers:nnunet_cubes", arguments=small, peers=True),
    ]
    posterior = {"folder": folder, "side": scale.posterior_cube, "samples": list(scale.samples)}
    tasks += [
        Task(
            section="samples",
            name=f"{kind} posterior, cube of {scale.posterior_cube}",
            call="ours:posterior",
            arguments={**posterior, "kind": kind},
        )
        for kind in ("full", "focused")
    ]
    tasks.append(
        Task(
            section="samples",
            name=f"focused posterior, {PHANTOM}",
            call="ours:posterior",
            arguments={
                "folder": folder,
                "side": None,
                "samples": [max(scale.samples)],
                "kind": "focused",
            },
        )
    )
    tasks.append(
        Task(
            section="scans",
            name="medseg batch",
            call="ours:batch",
            arguments={"folder": folder, "scans": list(scale.scans)},
        )
    )
    tasks.append(
        Task(
            section="start-up",
            name="medseg",
            call="ours:start_up",
            arguments={"folder": folder, "repeats": 3},
        )
    )
    return tasks


def training_tasks(scale: Scale, *, folder: str) -> list[Task]:
    """Return one training step in every manner."""
    tasks = []
    for network, side in scale.step_networks.items():
        base = {
            "folder": folder,
            "network": network,
            "widths": list(scale.widths) if network == "unet_3d" else None,
            "side": side,
            "batch": scale.step_batch,
            "steps": scale.steps,
        }
        kinds = {
            "plain torch float32": ("steps:plain", {}),
            "medseg": ("steps:ours", {"method": "pr"}),
            "medseg with its loading": ("steps:ours", {"method": "pr", "loading": True}),
            "medseg variational, Gaussian": ("steps:ours", {"method": "gaussian"}),
            "medseg variational, deep weight prior": ("steps:ours", {"method": "dwp"}),
        }
        if network == "unet_3d":
            kinds["MONAI"] = ("steps:monai", {})
            kinds["MONAI with its loading"] = ("steps:monai", {"loading": True})
        tasks += [
            Task(
                section="training",
                name=f"{network}: {name}",
                call=call,
                arguments={**base, **extra},
            )
            for name, (call, extra) in kinds.items()
        ]
    return tasks
