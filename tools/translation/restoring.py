"""Gaps in slices, filled by the mean, by smoothness and by the codes of models."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import make_model
from medseg.generative.fitting import FitSettings
from medseg.generative.latent_convolution import LatentConvolution, LatentConvolutionSettings
from medseg.generative.restoration import RestorationSettings, restore
from medseg.seeding import torch_generator
from tools.translation.cohorts import Cohort, Sizes, zscored
from tools.translation.images import Row

SIDE, HOLE = 24, 8


def patches(cohort: Cohort, n: int, *, seed: int) -> tuple[Tensor, list[str]]:
    """Return FLAIR patches (n, 1, 24, 24) of axial slices, inside the brain, and whose they are."""
    generator = torch_generator(seed, "patches", cohort.name)
    found, owners = [], []
    while len(found) < n:
        case = cohort.cases[int(torch.randint(len(cohort), (), generator=generator))]
        if case.brain is None:
            raise ValueError(f"case {case.identifier!r} has no brain mask")
        inside = case.brain.data > 0
        places = torch.nonzero(inside)
        place = places[int(torch.randint(len(places), (), generator=generator))].tolist()
        x, y, z = place[0] - SIDE // 2, place[1] - SIDE // 2, place[2]
        window = (slice(max(x, 0), x + SIDE), slice(max(y, 0), y + SIDE), z)
        if min(x, y) < 0 or inside[window].shape != (SIDE, SIDE):
            # A head smaller than a patch, as when all is quick: padded with its background.
            if min(inside.shape[:2]) >= SIDE:
                continue
        elif float(inside[window].float().mean()) < 0.8:
            continue
        image = zscored(case.scans["flair"].data, inside)[window]
        pads = [0, SIDE - image.shape[1], 0, SIDE - image.shape[0]]
        found.append(F.pad(image, pads)[None])
        owners.append(case.identifier)
    return torch.stack(found), owners


def masks(n: int, *, seed: int) -> dict[str, Tensor]:
    """Return what is observed, (n, 1, 24, 24), by the kind of gap."""
    hole = torch.ones(n, 1, SIDE, SIDE, dtype=torch.bool)
    start = (SIDE - HOLE) // 2
    hole[..., start : start + HOLE, start : start + HOLE] = False
    few = torch.rand(n, 1, SIDE, SIDE, generator=torch_generator(seed, "gaps")) < 0.3
    return {"hole of 8 x 8": hole, "70 % of voxels": few}


def models(sizes: Sizes) -> dict[str, GenerativeBase]:
    """Return the unfitted models."""
    shape, steps = (1, SIDE, SIDE), sizes.restore_steps
    fit = {"max_steps": steps, "epochs": 10**6, "batch_size": 64}

    def latent(code: Literal["network", "maps"]) -> GenerativeBase:
        options = FitSettings(**fit, learning_rate=2e-2, weight_decay=0.0, validation_fraction=0.0)
        settings = LatentConvolutionSettings(code=code, channels=(8, 16), pull=0.1, fit=options)
        return LatentConvolution(shape, settings)

    return {
        "ppca, 30 codes": make_model("ppca", shape, {"latent": min(30, sizes.patches - 2)}),
        "conv_vae, 30 codes": make_model(
            "conv_vae",
            shape,
            {"latent": 30, "channels": (16, 32), "decoder_std": "shared", "fit": fit},
        ),
        "latent maps (plain)": latent("maps"),
        "latent convolution": latent("network"),
    }


def restore_rows(
    training: Cohort, test: Cohort, sizes: Sizes, *, seed: int
) -> tuple[dict[str, list[Row]], dict[str, dict[str, Tensor]]]:
    """Return the rms error in the gaps by kind of gap, and the filled patches."""
    items, _ = patches(training, sizes.patches, seed=seed)
    unseen, owners = patches(test, sizes.restored, seed=seed)
    fitted = models(sizes)
    for name, model in fitted.items():
        model.fit(items, generator=torch_generator(seed, "fit", name))
    rows: dict[str, list[Row]] = {}
    pictures: dict[str, dict[str, Tensor]] = {}
    for gap, observed in masks(len(unseen), seed=seed).items():
        filled = {
            "mean": torch.where(observed, unseen, items.mean(0)),
            "smooth": smooth(unseen, observed),
        }
        for name, model in fitted.items():
            made = restore(
                model,
                unseen,
                observed,
                settings=RestorationSettings(iterations=60),
                generator=torch_generator(seed, "codes", name),
            )
            filled[name] = made.filled
        rows[gap] = [
            {"method": name, "case": owner, "patch": number, "rmse": _rmse(made, true, seen)}
            for name, all_made in filled.items()
            for number, (owner, made, true, seen) in enumerate(
                zip(owners, all_made, unseen, observed, strict=True)
            )
        ]
        given = torch.where(observed, unseen, torch.full_like(unseen, float("nan")))
        pictures[gap] = {"given": given, "true": unseen, **filled}
    return rows, pictures


def smooth(items: Tensor, observed: Tensor, *, rounds: int = 400) -> Tensor:
    """Return gaps filled with the solution of Laplace's equation, by Jacobi's iteration."""
    kernel = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None] / 4
    filled = torch.where(observed, items, items.mean())
    for _ in range(rounds):
        around = F.conv2d(F.pad(filled, (1, 1, 1, 1), mode="replicate"), kernel)
        filled = torch.where(observed, items, around)
    return filled


def _rmse(made: Tensor, true: Tensor, seen: Tensor) -> float:
    return float((made - true)[~seen].square().mean().sqrt())
