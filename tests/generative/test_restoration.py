"""Gaps are filled as the model says, exactly where it can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg.errors import ModelError, ShapeError
from medseg.generative.catalog import make_model
from medseg.generative.pca import Pca, PcaSettings, Ppca
from medseg.generative.restoration import CodePrior, RestorationSettings, restore
from medseg.seeding import torch_generator


def items_of(n: int = 300, *, seed: int = 0) -> Tensor:
    """Return smooth items (n, 1, 4, 4) of three factors and noise."""
    factors = torch.randn(3, 16, generator=torch_generator(0, "factors"))
    drawn = torch_generator(seed, "items")
    codes = torch.randn(n, 3, generator=drawn) * torch.tensor([2.0, 1.0, 0.7])
    noise = 0.3 * torch.randn(n, 16, generator=drawn)
    return (1.0 + codes @ factors + noise).reshape(n, 1, 4, 4)


def gaps(n: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch_generator(0, "gaps")) < 0.6


@pytest.fixture(scope="module")
def ppca() -> Ppca:
    model = Ppca((1, 4, 4), PcaSettings(latent=3))
    model.fit(items_of(), generator=torch_generator(0, "fit"))
    return model


def test_a_linear_decoder_gives_the_conditional_mean(ppca) -> None:
    """E[x_gap | x_observed] of N(mean, W W' + s^2 I), by the Schur complement."""
    items, observed = items_of(12, seed=1), gaps(12)
    made = restore(ppca, items, observed, generator=torch_generator(0, "z"))
    loadings = (ppca.decode(torch.eye(3)) - ppca.decode(torch.zeros(1, 3))).flatten(1).T.double()
    covariance = loadings @ loadings.T
    for item, seen, found in zip(items, observed, made.filled, strict=True):
        o, mean = seen.flatten(), ppca.mean.double()
        noisy = covariance[o][:, o] + float(ppca.noise) * torch.eye(int(o.sum())).double()
        away = torch.linalg.solve(noisy, item.flatten()[o].double() - mean[o])
        expected = mean[~o] + covariance[~o][:, o] @ away
        assert torch.allclose(found.flatten()[~o].double(), expected, atol=2e-5)
        assert torch.equal(found.flatten()[o], item.flatten()[o])


def test_with_nothing_hidden_the_code_is_the_encoders(ppca) -> None:
    items = items_of(5, seed=2)
    made = restore(ppca, items, torch.ones_like(items).bool(), generator=torch_generator(0, "z"))
    assert torch.allclose(made.codes, ppca.encode(items), atol=2e-5)


def test_what_stands_in_a_gap_does_not_matter(ppca) -> None:
    items, observed = items_of(4, seed=3), gaps(4)
    other = torch.where(observed, items, torch.full_like(items, float("nan")))
    one, two = (
        restore(ppca, given, observed, generator=torch_generator(0, "z"))
        for given in (items, other)
    )
    assert torch.equal(one.filled, two.filled)
    assert not any(p.requires_grad for p in ppca.parameters())


def test_a_robust_restoration_ignores_an_artefact_nobody_marked(ppca) -> None:
    items = items_of(20, seed=4)
    spoilt = items.clone()
    spoilt[:, 0, 0, :2] += 15.0
    everything = torch.ones_like(items).bool()

    def error(**options: float) -> float:
        chosen = RestorationSettings(noise_std=0.3, **options)
        made = restore(ppca, spoilt, everything, settings=chosen, generator=torch_generator(0, "z"))
        return float((made.items - items)[:, 0, 1:].square().mean().sqrt())

    assert error(robust_beyond=2.0) < 0.5 * error()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vae", {"latent": 3, "hidden": (16,)}),
        ("conv_vae", {"latent": 3, "channels": (8,), "decoder_std": "shared"}),
        ("flow", {"steps": 2, "hidden": 16}),
        ("ae", {"widths": (16, 3)}),
        ("pca", {"latent": 3}),
    ],
)
def test_every_decoder_fills_gaps_better_than_the_mean(kind, options) -> None:
    items, unseen = items_of(), items_of(30, seed=5)
    if kind != "pca":
        options = {**options, "fit": {"max_steps": 250, "batch_size": 64, "learning_rate": 1e-2}}
    model = make_model(kind, (1, 4, 4), options)
    model.fit(items, generator=torch_generator(0, "fit"))
    likely = kind in ("vae", "conv_vae")
    prior = CodePrior.of(model.encode(items).detach()) if kind in ("ae", "pca") else None
    observed = gaps(30)
    made = restore(
        model,
        unseen,
        observed,
        settings=RestorationSettings(noise_std=None if likely else 0.3, iterations=25),
        prior=prior,
        generator=torch_generator(0, "z"),
    )
    error = (made.filled - unseen)[~observed].square().mean()
    assert error < 0.5 * (items.mean(0) - unseen)[~observed].square().mean()
    assert made.nats.shape == (30,)


def test_what_cannot_be_restored_is_refused(ppca) -> None:
    items, generator = items_of(4), torch_generator(0, "z")
    everything = torch.ones_like(items).bool()
    gan = make_model("gan", (1, 4, 4))
    with pytest.raises(ModelError, match="cannot decode"):
        restore(gan, items, everything, generator=generator)
    with pytest.raises(ModelError, match="4 have nothing"):
        restore(ppca, items, ~everything, generator=generator)
    spoilt = items.index_fill(0, torch.tensor([1]), float("nan"))
    with pytest.raises(ModelError, match="1 have NaN"):
        restore(ppca, spoilt, everything, generator=generator)
    with pytest.raises(ShapeError, match="bool tensor"):
        restore(ppca, items, everything.float(), generator=generator)
    pca = Pca((1, 4, 4), PcaSettings(latent=2))
    with pytest.raises(ModelError, match="no prior is given"):
        restore(pca, items, everything, generator=generator)
    with pytest.raises(ModelError, match="noise_std is not given"):
        restore(pca, items, everything, prior=CodePrior.of(torch.randn(9, 2)), generator=generator)
    chosen = RestorationSettings(robust_beyond=1.0)
    with pytest.raises(ModelError, match="robust"):
        restore(ppca, items, everything, settings=chosen, generator=generator)
