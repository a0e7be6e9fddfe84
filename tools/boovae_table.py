"""Nats of old and new kernels when a prior of MS networks takes those of tumour networks.

Small networks are trained on phantoms, two of each disease; of each pair one is kept from all fits.
Compared are BooVAE, which sees no old kernel at its second task, a naive refit, which goes on with
the new kernels alone, and fits to both sets at once. Writes boovae_table.json and boovae_table.md.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from medseg.config.build import load_plan
from medseg.experiment.sources import train_members
from medseg.generative.catalog import make_model
from medseg.generative.fitting import split_items
from medseg.generative.vae import Vae
from medseg.inference.model import load_model
from medseg.io.atomic import write_json, write_text
from medseg.priors.fit import MODELS
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.seeding import torch_generator

SMALL = {"n_subjects": 6, "spacing_mm": 8.0, "modalities": "[flair, t1c]"}


def networks(out: Path, steps: int) -> dict[str, KernelSet]:
    """Train two networks of each disease, or load them; return their kernels."""
    given = ", ".join(f"{key}: {value}" for key, value in SMALL.items())
    sources = ", ".join(
        f"{disease}: [{{kind: phantom, settings: {{disease: {disease}, {given}}}}}]"
        for disease in ("ms", "tumour")
    )
    overrides = [
        f"sources={{{sources}}}",
        "arms=[{method: {method: pr}, sources: [ms, tumour]}]",
        "protocol.preprocess.spacing_mm=[8.0, 8.0, 8.0]",
        "protocol.patch.size=[16, 16, 16]",
        f"protocol.source_training={{steps: {steps}, learning_rate: 0.004}}",
    ]
    plan = load_plan("experiment/priors", overrides, command="tools/boovae_table")
    return {
        name: harvest(
            [
                load_model(folder, ignore_calibration=True).network
                for folder in train_members(plan, name, out, key="table")
            ]
        )
        for name in ("ms", "tumour")
    }


def items_of(kernels: KernelSet, like: KernelSet, network: int) -> Tensor:
    """Return the kernels of one network, each layer in units of its scale in ``like``."""
    chosen = kernels.of_networks([network])
    return torch.cat([chosen.of_layer(n) / like.layer_scale(n) for n in kernels.layer_names])


def refit(model: Vae, items: Tensor, seed: int) -> Vae:
    """Return the model after going on with ``items`` alone, in its own units and with its prior."""
    made = copy.deepcopy(model).requires_grad_(True)
    generator = torch_generator(seed, "refit")
    rows = split_items(
        len(items), fraction=model.settings.fit.validation_fraction, generator=generator
    )
    made._raise_elbo(made.standardiser(items.flatten(1)), None, *rows, generator=generator)
    return made


def measure(sets: dict[str, KernelSet], seed: int) -> list[dict[str, object]]:
    """Return a row per way: nats of unseen old and new kernels, and seconds."""
    old, new = (items_of(sets[name], sets["ms"], 0) for name in ("ms", "tumour"))
    unseen = {name: items_of(sets[name], sets["ms"], 1) for name in ("ms", "tumour")}
    rows: list[dict[str, object]] = []

    def tell(way: str, model: Vae, started: float) -> None:
        row: dict[str, object] = {"way": way, "seed": seed}
        row["seconds"] = round(time.perf_counter() - started, 1)
        with torch.no_grad():
            for name, items in unseen.items():
                drawn = torch_generator(seed, "rows")
                part = items[torch.randperm(len(items), generator=drawn)[:2000]]
                row[name] = float(model.bound(part, generator=torch_generator(seed)).mean())
                row[f"n_{name}"] = len(part)
        rows.append(row)

    for kind in ("vae", "boovae"):
        fitted = {}
        for name, items in {"ms only": old, "both at once": torch.cat([old, new])}.items():
            started = time.perf_counter()
            model = cast(Vae, make_model(kind, tuple(old.shape[1:]), MODELS[kind]))
            model.fit(items, generator=torch_generator(seed, "fit"))
            tell(f"{kind}, {name}", model, started)
            fitted[name] = model
        started = time.perf_counter()
        tell(f"{kind}, then tumour alone (naive)", refit(fitted["ms only"], new, seed), started)
        if kind == "boovae":
            started = time.perf_counter()
            longer, _ = fitted["ms only"].extend(new, generator=torch_generator(seed, "extend"))
            tell("boovae, extended by tumour", longer, started)
    return rows


def to_markdown(rows: list[dict[str, object]], command: str) -> str:
    """Return means over seeds, with their standard deviations."""
    seeds = sorted({cast(int, row["seed"]) for row in rows})
    lines = ["| fitted | MS, nats | tumour, nats | fit, s |", "|---|---|---|---|"]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        cells = []
        for name in ("ms", "tumour", "seconds"):
            values = torch.tensor([cast(float, row[name]) for row in own])
            spread = f" ± {float(values.std()):.2f}" if len(values) > 1 else ""
            cells.append(f"{float(values.mean()):.2f}{spread}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    caption = (
        f"Nats per kernel of {rows[0]['n_ms']} kernels of an unseen network of each disease "
        f"(importance-weighted bound, 64 codes; kernels in units of the MS layers' rms), mean ± "
        f"standard deviation over seeds {', '.join(map(str, seeds))} of the fits; the networks are "
        "the same. Phantoms."
    )
    return f"`{command}`\n\n" + "\n".join(lines) + f"\n\n{caption}\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tools/boovae_table", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/boovae_table"), help="default: runs/boovae_table")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the fits; default: 0 1 2")
    add("--steps", type=int, default=100, help="of each network; default: 100")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    sets = networks(chosen.out, chosen.steps)
    rows = [row for seed in chosen.seeds for row in measure(sets, seed)]
    seeds = " ".join(map(str, chosen.seeds))
    command = f"tools/boovae_table --seeds {seeds} --steps {chosen.steps}"
    write_json(chosen.out / "boovae_table.json", {"command": command, "rows": rows})
    text = to_markdown(rows, command)
    write_text(chosen.out / "boovae_table.md", text)
    print(text)


if __name__ == "__main__":
    main()
