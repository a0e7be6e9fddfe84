import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.errors import ModelError, PriorError
from medseg.generative.storage import write_folder
from medseg.priors.fit import FitPriorSettings, fit_priors, source_centred_priors
from medseg.priors.gaussian import DiagonalGaussian
from medseg.priors.harvest import harvest
from medseg.priors.kernel_set import KernelSet
from medseg.priors.layer_priors import LayerPriors
from medseg.priors.learned import LearnedPrior, VaePrior
from medseg.seeding import torch_generator

Make = Callable[..., nn.Module]
NETWORKS = 2
KINDS = [
    "diagonal",
    "gaussian",
    "vae",
    "vae group",
    "vae conditioned",
    "flow conditioned",
    "rbm group",
    "gmm",
    "source-centred",
]


@pytest.fixture(scope="module")
def kernels(make_network: Make) -> KernelSet:
    return harvest([make_network(seed=s) for s in range(NETWORKS)])


def build(kind: str, kernels: KernelSet, make_network: Make) -> LayerPriors:
    if kind == "source-centred":
        return source_centred_priors(make_network(), relative_std=0.3)
    name, _, grouping = kind.partition(" ")
    small = {
        "vae": {"latent": 2, "hidden": (8,), "fit": {"max_steps": 20}},
        "flow": {"steps": 1, "hidden": 8, "blocks": 2, "fit": {"max_steps": 20}},
        "rbm": {"hidden": 4, "sample_sweeps": 4, "contrastive": {"fit": {"max_steps": 20}}},
    }
    settings = FitPriorSettings(
        kind=name,
        grouping=grouping or "layer",  # type: ignore[arg-type]
        model=small.get(name, {}),
    )
    return fit_priors(kernels, settings, seed=0)


@pytest.fixture(scope="module", params=KINDS)
def priors(request: pytest.FixtureRequest, kernels: KernelSet, make_network: Make) -> LayerPriors:
    return build(request.param, kernels, make_network)


def test_save_then_load_changes_nothing(
    priors: LayerPriors, kernels: KernelSet, tmp_path: Path
) -> None:
    priors.save(tmp_path / "priors")
    loaded = LayerPriors.load(tmp_path / "priors")
    assert loaded.layers == priors.layers
    assert loaded.kernel_shape == priors.kernel_shape
    assert loaded.hash == priors.hash
    assert loaded.provenance == priors.provenance
    for name in priors.layers:
        w = kernels.of_networks([1]).of_layer(name)
        assert torch.equal(
            priors.log_bound(name, w, generator=torch_generator(0)),
            loaded.log_bound(name, w, generator=torch_generator(0)),
        )
        assert torch.equal(
            priors.sample(name, len(w), generator=torch_generator(0)),
            loaded.sample(name, len(w), generator=torch_generator(0)),
        )
    assert len(loaded.trainable_parameters()) == len(priors.trainable_parameters())


def test_saving_twice_writes_the_same_hash(priors: LayerPriors, tmp_path: Path) -> None:
    priors.save(tmp_path / "a")
    LayerPriors.load(tmp_path / "a").save(tmp_path / "b")
    first, second = (
        json.loads((tmp_path / name / "priors.json").read_text()) for name in ("a", "b")
    )
    assert first == second


def test_state_dict_carries_the_inference_networks(kernels: KernelSet, make_network: Make) -> None:
    first, second = (build("vae group", kernels, make_network) for _ in range(2))
    with torch.no_grad():
        for parameter in first.trainable_parameters():
            parameter.add_(0.1)
    second.load_state_dict(first.state_dict())
    pairs = zip(first.trainable_parameters(), second.trainable_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_training_the_inference_networks_keeps_the_hash_and_is_saved(
    kernels: KernelSet, make_network: Make, tmp_path: Path
) -> None:
    priors = build("vae", kernels, make_network)
    before = priors.hash
    with torch.no_grad():
        for parameter in priors.trainable_parameters():
            parameter.add_(0.1)
    assert priors.hash == before
    priors.save(tmp_path)
    loaded = LayerPriors.load(tmp_path)
    pairs = zip(priors.trainable_parameters(), loaded.trainable_parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    decoder = priors.prior_for("down.0")
    assert isinstance(decoder, VaePrior)
    with torch.no_grad():
        decoder.vae.decoder.net[0].weight.add_(0.1)
    assert priors.hash != before


def test_shared_modules_stay_shared(kernels: KernelSet, make_network: Make, tmp_path: Path) -> None:
    build("vae conditioned", kernels, make_network).save(tmp_path / "vae")
    loaded = LayerPriors.load(tmp_path / "vae")
    found = [loaded.prior_for(name) for name in loaded.layers]
    assert len({id(prior.vae) for prior in found if isinstance(prior, VaePrior)}) == 1
    assert len({id(prior.inference) for prior in found if isinstance(prior, VaePrior)}) == 1
    build("rbm group", kernels, make_network).save(tmp_path / "rbm")
    loaded = LayerPriors.load(tmp_path / "rbm")
    found = [loaded.prior_for(name) for name in loaded.layers]
    assert len({id(prior.model) for prior in found if isinstance(prior, LearnedPrior)}) == 3


def test_a_table_is_normalised_if_all_of_it_is(kernels: KernelSet, make_network: Make) -> None:
    gmm, rbm = (build(kind, kernels, make_network) for kind in ("gmm", "rbm group"))
    mixed = LayerPriors({"a": gmm.prior_for("down.0"), "b": rbm.prior_for("down.0")})
    assert [table.is_normalised for table in (gmm, rbm, mixed)] == [True, False, False]
    assert [row["kind"] for row in mixed.describe()] == ["gmm", "rbm"]


def test_unknown_layer_is_refused_with_those_known(priors: LayerPriors) -> None:
    with pytest.raises(PriorError, match=r"down.0, down.1, up.first, up.second, but it is 'stem'"):
        priors.prior_for("stem")


def test_wrong_kernel_shape_is_refused(priors: LayerPriors) -> None:
    with pytest.raises(PriorError, match=r"\(m, 3, 3, 3\), but it was given \(4, 3, 3\)"):
        priors.log_bound("down.0", torch.zeros(4, 3, 3))


def test_no_prior_and_mixed_shapes_are_refused() -> None:
    with pytest.raises(PriorError, match="one kernel shape"):
        LayerPriors({})
    flat = DiagonalGaussian(torch.zeros(3, 3), torch.ones(3, 3))
    deep = DiagonalGaussian(torch.zeros(3, 3, 3), torch.ones(3, 3, 3))
    with pytest.raises(PriorError, match=r"\(3, 3\), \(3, 3, 3\)"):
        LayerPriors({"a": flat, "b": deep})


def test_folder_of_another_version_is_refused(priors: LayerPriors, tmp_path: Path) -> None:
    tensors, description = priors._pack()
    write_folder(tmp_path, "priors", tensors, {**description, "layers": [{"layer": "x"}]})
    with pytest.raises(ModelError, match="priors of this version"):
        LayerPriors.load(tmp_path)
