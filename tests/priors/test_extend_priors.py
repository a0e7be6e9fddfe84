"""A prior of one disease's kernels takes those of another without seeing the first again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.cli.main import main
from medseg.errors import PriorError
from medseg.priors.extend import extend_priors, mean_nats
from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors

MODEL = {"latent": 2, "hidden": (16,), "components": (2,), "fit": {"max_steps": 100}}


def rough(network: nn.Module) -> nn.Module:
    """Make every other weight of the kernels negative: nothing like smooth ones."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 5:
                weight.mul_(torch.tensor([1.0, -1.0, 1.0])[: weight.shape[-1]])
    return network


@pytest.fixture(scope="module")
def old(make_network: Callable[..., nn.Module]) -> KernelSet:
    return harvest([make_network(seed=s) for s in range(2)])


@pytest.fixture(scope="module")
def new(make_network: Callable[..., nn.Module]) -> KernelSet:
    return harvest([rough(make_network(seed=s)) for s in range(2, 4)])


@pytest.mark.parametrize("grouping", ["group", "conditioned"])
def test_new_kernels_gain_and_old_ones_lose_little(
    old: KernelSet, new: KernelSet, grouping: str, tmp_path: Path
) -> None:
    options = FitPriorSettings(kind="boovae", grouping=grouping, model=MODEL)  # type: ignore[arg-type]
    before = fit_priors(old, options, seed=0)
    after = extend_priors(before, new, seed=0)
    gain = mean_nats(after, new, seed=0) - mean_nats(before, new, seed=0)
    loss = mean_nats(before, old, seed=0) - mean_nats(after, old, seed=0)
    assert gain > 1
    assert loss < gain / 2
    assert after.provenance["extends"] == before.hash
    after.save(tmp_path)
    assert mean_nats(LayerPriors.load(tmp_path), new, seed=0) == mean_nats(after, new, seed=0)


def test_the_command_tells_what_the_new_kernels_gain(
    old: KernelSet, new: KernelSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = FitPriorSettings(kind="boovae", grouping="group", model=MODEL)
    fit_priors(old, options, seed=0).save(tmp_path / "prior")
    new.save(tmp_path / "kernels")
    arguments = ["--extend", str(tmp_path / "prior"), "--out", str(tmp_path / "longer")]
    assert main(["fit-prior", str(tmp_path / "kernels"), *arguments]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["prior", "before", "after"]
    assert float(lines[2][1]) > float(lines[1][1])
    longer = LayerPriors.load(tmp_path / "longer")
    assert longer.provenance["n_kernels"] == len(new)


def test_what_cannot_be_extended_is_refused(
    old: KernelSet, make_network: Callable[..., nn.Module]
) -> None:
    with pytest.raises(PriorError, match="is not one"):
        extend_priors(fit_priors(old, FitPriorSettings(kind="gaussian"), seed=0), old, seed=0)
    brief = {**MODEL, "fit": {"max_steps": 2}}
    options = FitPriorSettings(kind="boovae", grouping="group", model=brief)
    flat = harvest([make_network(seed=0, dims=2)])
    with pytest.raises(PriorError, match=r"must be \(3, 3, 3\)"):
        extend_priors(fit_priors(old, options, seed=0), flat, seed=0)


def test_the_code_is_as_long_as_the_kernels_ask_for(old: KernelSet) -> None:
    flat = torch.randn(len(old), 2, generator=torch.Generator().manual_seed(0))
    plane = torch.randn(2, 27, generator=torch.Generator().manual_seed(1))
    planar = KernelSet(
        kernels=(flat @ plane).reshape(-1, 3, 3, 3),
        layer=old.layer,
        network=old.network,
        channels=old.channels,
        layers=old.layers,
    )
    options = FitPriorSettings(kind="ppca", grouping="group", model={"latent": "auto"})
    record = fit_priors(planar, options, seed=0).provenance["fits"]
    # Two numbers, rounded up.
    assert all(2 <= fit["latent"] <= 3 for fit in record.values())
    with pytest.raises(ValueError, match="latent"):
        FitPriorSettings(kind="gmm", model={"latent": "auto"})
