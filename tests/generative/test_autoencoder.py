import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

from medseg.errors import ModelError
from medseg.generative.autoencoder import Autoencoder, AutoencoderSettings
from medseg.generative.autoencoder_layers import AutoencoderLayers, code_entropy, code_size
from medseg.generative.denoising import DenoisingAutoencoder, DenoisingSettings
from medseg.generative.fitting import FitSettings
from medseg.seeding import torch_generator

QUICK = FitSettings(max_steps=250, epochs=400, batch_size=100, learning_rate=0.02)
LINEAR = {"activation": "linear", "code_activation": "linear", "standardise": "none"}


def plane(n: int) -> Tensor:
    """Items near a plane in five dimensions."""
    generator = torch_generator(0, "plane")
    loadings = torch.randn(5, 2, generator=generator) * torch.tensor([1.5, 0.8])
    z = torch.randn(n, 2, generator=generator)
    return z @ loadings.T + 0.3 * torch.randn(n, 5, generator=generator) + 1


def circle(n: int, noise: float = 0.0) -> Tensor:
    generator = torch_generator(0, "circle")
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    items = torch.stack([angle.cos(), angle.sin()], 1)
    return items + noise * torch.randn(n, 2, generator=generator)


def stripes(n: int) -> Tensor:
    """Masks of 3 x 4 whose rows are all on or all off, (n, 1, 3, 4)."""
    rows = torch.randint(0, 2, (n, 3), generator=torch_generator(0, "stripes")).float()
    return rows[:, None, :, None].expand(n, 1, 3, 4).contiguous()


@pytest.fixture(scope="module")
def linear() -> Autoencoder:
    fit = FitSettings(
        max_steps=600,
        epochs=1000,
        batch_size=1000,
        learning_rate=0.1,
        weight_decay=0,
        validation_fraction=0,
    )
    model = Autoencoder((5,), AutoencoderSettings(widths=(2,), **LINEAR, fit=fit))  # type: ignore[arg-type]
    model.fit(plane(1000), generator=torch_generator(1))
    return model


def test_linear_autoencoder_spans_the_space_of_pca(linear: Autoencoder) -> None:
    items = plane(1000)
    pca = PCA(2).fit(items.numpy())
    angles = subspace_angles(
        linear.layers.weight_down(0).detach().double().numpy(), pca.components_.T
    )
    assert np.degrees(angles).max() < 0.2
    error = float((linear.reconstruct(items) - items).detach().square().sum(1).mean())
    best = (pca.inverse_transform(pca.transform(items.numpy())) - items.numpy()) ** 2
    assert error == pytest.approx(best.sum(1).mean(), rel=1e-3)


def test_energy_of_a_linear_autoencoder_is_that_of_probabilistic_pca(linear: Autoencoder) -> None:
    train, held = plane(1300).split([1000, 300])
    exact = torch.from_numpy(-PCA(2).fit(train.numpy()).score_samples(held.numpy()))
    with torch.no_grad():
        away = linear.energy(held) - exact
    assert float(exact.std()) > 1
    assert float((away - away.mean()).abs().max()) < 0.5
    assert float(away.std()) < 0.15


@pytest.mark.parametrize("activation", ["linear", "relu", "elu", "tanh", "sigmoid"])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 5, 3)])
def test_contraction_is_the_norm_of_the_jacobian(activation: str, sizes: tuple[int, ...]) -> None:
    layers = AutoencoderLayers(
        sizes,
        activation=activation,  # type: ignore[arg-type]
        code_activation="sigmoid",
        tied=False,
    )
    layers.reset(torch_generator(0))
    u = torch.randn(7, 4, generator=torch_generator(1))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: layers.encode(x[None])[0]))(u)
    torch.testing.assert_close(layers.contraction(u), jacobian.square().sum((1, 2)))


def test_contraction_forgets_what_leaves_the_plane() -> None:
    items = plane(600)
    across = PCA(5).fit(items.numpy()).components_[2:]
    lengths, shares, errors = [], [], []
    for weight in (0.0, 1.0):
        settings = AutoencoderSettings(
            widths=(12,), code_activation="sigmoid", contraction=weight, fit=QUICK
        )
        model = Autoencoder((5,), settings)
        model.fit(items, generator=torch_generator(0))
        jacobian = torch.func.vmap(
            torch.func.jacrev(lambda x, m=model: m.layers.encode(m.standardiser(x[None]))[0])
        )(items)
        leaving = (jacobian @ torch.from_numpy(across.T).float()).square().sum((1, 2))
        lengths.append(float(jacobian.detach().square().sum((1, 2)).mean()))
        shares.append(float((leaving / jacobian.square().sum((1, 2))).mean().detach()))
        errors.append(float((model.reconstruct(items) - items).detach().square().sum(1).mean()))
    assert lengths[1] < 0.5 * lengths[0]
    assert shares[1] < 0.5 * shares[0]
    # The plane itself is still there.
    assert errors[1] < 0.3 * float(items.var(0).sum())


def denoiser(items: Tensor, **chosen: object) -> DenoisingAutoencoder:
    settings = DenoisingSettings(**{"fit": QUICK, **chosen})  # type: ignore[arg-type]
    model = DenoisingAutoencoder(tuple(items.shape[1:]), settings)
    model.fit(items, generator=torch_generator(1))
    return model


@pytest.fixture(scope="module")
def on_circle() -> DenoisingAutoencoder:
    fit = FitSettings(max_steps=500, epochs=1000, batch_size=100, learning_rate=0.02)
    return denoiser(circle(1000), standardise="none", noise_std=0.2, chain_steps=50, fit=fit)


def test_denoising_residual_points_to_the_curve(on_circle: DenoisingAutoencoder) -> None:
    on = circle(200)
    for radius in (0.75, 1.25):
        with torch.no_grad():
            step = on_circle.reconstruct(radius * on) - radius * on
        towards = on * (1 - radius)
        cosine = functional.cosine_similarity(step, towards)
        assert float(cosine.mean()) > 0.9
        assert float(cosine.min()) > 0.8
        # To the curve, not past it.
        assert float((radius * on + step).norm(dim=1).mean()) == pytest.approx(1, abs=0.08)


def test_denoising_energy_is_least_on_the_curve(on_circle: DenoisingAutoencoder) -> None:
    radii = torch.linspace(0.4, 1.8, 57)
    with torch.no_grad():
        energy = torch.stack([on_circle.energy(r * circle(100)).mean() for r in radii])
    assert float(radii[energy.argmin()]) == pytest.approx(1, abs=0.06)


def test_chain_stays_on_the_curve_and_goes_all_round(on_circle: DenoisingAutoencoder) -> None:
    samples = on_circle.sample(400, generator=torch_generator(0))
    assert float(samples.norm(dim=1).mean()) == pytest.approx(1, abs=0.06)
    assert float(samples.norm(dim=1).std()) < 0.25
    angle = torch.atan2(samples[:, 1], samples[:, 0])
    counts = torch.histc(angle, 8, -math.pi, math.pi)
    assert counts.min() > 15


def test_energy_of_a_linear_denoiser_is_that_of_the_smoothed_gaussian() -> None:
    """``r(x) = S (S + s^2 I)^-1 x``, so that the energy is ``x' (S + s^2 I)^-1 x / 2``."""
    train, held = plane(2300).split([2000, 300])
    fit = FitSettings(
        max_steps=300, epochs=1000, batch_size=500, learning_rate=0.04, weight_decay=0
    )
    model = denoiser(train, widths=(5,), **LINEAR, noise_std=0.7, fit=fit)
    mean, smoothed = train.double().mean(0), train.T.double().cov() + 0.49 * torch.eye(5)
    away = held.double() - mean
    exact = 0.5 * (away @ torch.linalg.inv(smoothed) * away).sum(1)
    with torch.no_grad():
        gap = model.energy(held) - exact
    assert float(exact.std()) > 0.8
    assert float(gap.std()) < 0.1


def tied_sigmoid() -> DenoisingAutoencoder:
    settings = DenoisingSettings(
        widths=(9,), code_activation="sigmoid", tied=True, standardise="none", noise_std=0.4
    )
    return DenoisingAutoencoder((5,), settings)


def test_energy_of_a_tied_layer_equals_the_closed_form_and_its_slope_the_residual() -> None:
    """Vincent (2011), section 4: ``(|x|^2 / 2 - c'x - sum softplus(Wx + b)) / s^2``."""
    model, generator = tied_sigmoid(), torch_generator(2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    up, down = model.layers.up[0], model.layers.down[0]
    x = torch.randn(20, 5, generator=generator).requires_grad_()

    def closed(x: Tensor) -> Tensor:
        units = functional.softplus(up(x)).sum(1)
        return (0.5 * x.square().sum(1) - x @ down.get_parameter("bias") - units) / 0.16

    energy = model.energy(x)
    expected = closed(x) - closed(torch.zeros(1, 5))
    torch.testing.assert_close(energy, expected, rtol=1e-4, atol=1e-3)
    (slope,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(slope, (x - model.reconstruct(x)) / 0.16, rtol=1e-3, atol=1e-2)


def test_masking_teaches_what_the_hidden_number_was() -> None:
    generator = torch_generator(0)
    shared = torch.randn(800, 1, generator=generator)
    items = shared + 0.2 * torch.randn(800, 4, generator=generator)
    fit = FitSettings(max_steps=400, epochs=1000, batch_size=100, learning_rate=0.02)
    model = denoiser(items, corruption="masking", standardise="scale", chain_steps=60, fit=fit)
    shown = items.clone()
    shown[:, 2] = items.mean()
    with torch.no_grad():
        answer = model.reconstruct(shown)[:, 2]
    assert float(torch.corrcoef(torch.stack([answer, items[:, 2]]))[0, 1]) > 0.9
    samples = model.sample(500, generator=generator)
    assert float(torch.corrcoef(samples.T)[0, 1]) > 0.7
    assert float(samples.std()) == pytest.approx(float(items.std()), rel=0.3)


@pytest.mark.parametrize("corruption", ["masking", "gaussian"])
def test_masks_are_completed_and_drawn(corruption: str) -> None:
    model = denoiser(
        stripes(300),
        loss="cross_entropy",
        corruption=corruption,
        noise_std=0.4,
        mask_probability=0.4,
        chain_steps=50,
    )
    samples = model.sample(200, generator=torch_generator(0))
    assert set(samples.unique().tolist()) <= {0.0, 1.0}
    whole = (samples == samples[..., :1]).all((1, 2, 3))
    # 3 in 512 by chance.
    assert float(whole.float().mean()) > 0.75
    assert len(samples[whole].flatten(1).unique(dim=0)) == 8


def dictionary(n: int) -> tuple[Tensor, Tensor]:
    """Items that are sums of few of 12 atoms in 8 dimensions, and the atoms."""
    generator = torch_generator(0, "dictionary")
    atoms = functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    used = (torch.rand(n, 12, generator=generator) < 0.12).float()
    return (used * (1 + torch.rand(n, 12, generator=generator))) @ atoms, atoms


def test_sparse_overcomplete_autoencoder_finds_the_dictionary() -> None:
    items, atoms = dictionary(2000)
    found, active = {}, {}
    for l1, steps in ((0.0, 200), (0.6, 600)):
        fit = FitSettings(max_steps=steps, epochs=1000, learning_rate=0.04, batch_size=200)
        settings = AutoencoderSettings(
            widths=(16,), code_activation="relu", standardise="none", l1=l1, fit=fit
        )
        model = Autoencoder((8,), settings)
        model.fit(items, generator=torch_generator(0))
        learned = functional.normalize(model.layers.weight_down(0).detach(), dim=0)
        found[l1] = int(((atoms @ learned).amax(1) > 0.95).sum())
        active[l1] = float((model.encode(items) > 1e-2).float().sum(1).mean())
    assert found[0.6] >= 10
    assert found[0.6] > found[0.0]
    assert active[0.6] < 0.6 * active[0.0]


def test_entropy_makes_few_units_carry_a_code() -> None:
    items, _ = dictionary(800)
    units = []
    for weight in (0.0, 1.0):
        settings = AutoencoderSettings(
            widths=(16,), code_activation="relu", entropy=weight, fit=QUICK
        )
        model = Autoencoder((8,), settings)
        model.fit(items, generator=torch_generator(0))
        with torch.no_grad():
            size = code_size(model.encode(items), model.layers.weight_down(0))
        units.append(float(code_entropy(size).exp().mean()))
    assert units[1] < 0.7 * units[0]


def test_code_penalties_have_known_values() -> None:
    code = torch.tensor([[3.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([0.0, math.log(4), 0.0])
    torch.testing.assert_close(code_entropy(code.abs()), expected)
    # Half the code with twice the weights is as large.
    weight = torch.randn(5, 4, generator=torch_generator(0))
    torch.testing.assert_close(code_size(code, weight), code_size(0.5 * code, 2 * weight))


@pytest.mark.parametrize("noise", ["gaussian", "bernoulli"])
def test_noise_makes_codes_binary(noise: str) -> None:
    items = stripes(400)
    share = {}
    for kind in ("none", noise):
        settings = AutoencoderSettings(
            widths=(3,),
            code_activation="sigmoid",
            loss="cross_entropy",
            code_noise=kind,  # type: ignore[arg-type]
            code_noise_std=4,
            fit=replace(QUICK, max_steps=400, batch_size=200, learning_rate=0.03),
        )
        model = Autoencoder((1, 3, 4), settings)
        model.fit(items, generator=torch_generator(0))
        codes = model.encode(items).detach()
        share[kind] = float(((codes < 0.1) | (codes > 0.9)).float().mean())
    assert share[noise] > share["none"]
    assert share[noise] > 0.95
    # Thresholded codes still know the item.
    assert torch.equal((model.decode((codes > 0.5).float()) > 0.5).float(), items)


def test_greedy_start_helps_a_deep_autoencoder() -> None:
    items = torch.cat([plane(400), plane(400).square()], 1)
    errors = {}
    for steps in (0, 150):
        settings = AutoencoderSettings(
            widths=(20, 20, 20, 4),
            activation="sigmoid",
            code_activation="linear",
            greedy_steps=steps,
            fit=FitSettings(max_steps=60, epochs=100, learning_rate=0.01),
        )
        model = Autoencoder((10,), settings)
        model.fit(items, generator=torch_generator(0))
        errors[steps] = float((model.reconstruct(items) - items).detach().square().mean())
    assert errors[150] < 0.5 * errors[0]


def test_stacked_denoiser_learns_from_corrupted_layers() -> None:
    items = plane(300)
    model = denoiser(items, widths=(12, 8), greedy_steps=100, fit=FitSettings(max_steps=100))
    error = (model.reconstruct(items) - items).detach().square().mean()
    assert float(error) < 0.5 * float(items.var())


def test_wider_codes_reconstruct_better() -> None:
    items, errors = plane(500), []
    for width in (1, 2, 12):
        settings = AutoencoderSettings(widths=(24, width), fit=replace(QUICK, max_steps=150))
        model = Autoencoder((5,), settings)
        model.fit(items, generator=torch_generator(0))
        errors.append(float((model.reconstruct(items) - items).detach().square().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_tied_weights_are_one_parameter() -> None:
    tied = Autoencoder((5,), AutoencoderSettings(widths=(4, 3), tied=True))
    free = Autoencoder((5,), AutoencoderSettings(widths=(4, 3)))
    assert torch.equal(tied.layers.weight_down(1), tied.layers.up[1].get_parameter("weight").T)
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, free)]
    assert count[1] - count[0] == 5 * 4 + 4 * 3


def test_energy_of_an_item_far_from_all_others_is_high_but_finite(
    on_circle: DenoisingAutoencoder, linear: Autoencoder
) -> None:
    for model in (on_circle, linear):
        far = torch.full((1, *model.event_shape), 1e3, requires_grad=True)
        energy = model.energy(far)
        energy.sum().backward()
        assert 1e3 < float(energy.detach()) < math.inf
        assert far.grad is not None
        assert torch.isfinite(far.grad).all()


def test_sampling_a_contractive_autoencoder_is_refused(linear: Autoencoder) -> None:
    with pytest.raises(ModelError, match=r"cannot be sampled; .*vae.* can"):
        linear.sample(3, generator=torch_generator(0))
    with pytest.raises(ModelError, match="no normalised density"):
        linear.bound(plane(3))


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="unlimited code outgrows its noise"):
        AutoencoderSettings(code_noise="gaussian")
    with pytest.raises(ValidationError, match="'tanh'"):
        AutoencoderSettings(code_noise="bernoulli", code_activation="tanh")
    model = Autoencoder((5,), AutoencoderSettings(loss="cross_entropy"))
    with pytest.raises(ModelError, match=r"between 0 and 1, but they go from -"):
        model.fit(plane(20), generator=torch_generator(0))
