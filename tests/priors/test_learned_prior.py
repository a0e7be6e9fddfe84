import math

import pytest
import torch

from medseg.generative.fitting import FitSettings
from medseg.generative.vae import Vae, VaeSettings
from medseg.priors.learned import VaePrior
from medseg.seeding import torch_generator


@pytest.fixture(scope="module")
def vae() -> Vae:
    generator = torch_generator(0)
    size = torch.randn(600, 1, generator=generator).exp()
    items = size * torch.randn(600, 9, generator=generator)
    made = Vae(
        (3, 3), VaeSettings(latent=2, hidden=(24,), std_floor=0.1, fit=FitSettings(max_steps=200))
    )
    made.fit(items.reshape(-1, 3, 3), generator=generator)
    return made


def test_scale_enters_with_its_jacobian(vae: Vae) -> None:
    w = torch.randn(50, 3, 3, generator=torch_generator(1))
    plain = VaePrior(vae).log_bound(w, generator=torch_generator(0))
    scaled = VaePrior(vae, scale=0.02).log_bound(0.02 * w, generator=torch_generator(0))
    torch.testing.assert_close(scaled, plain - 9 * math.log(0.02), rtol=1e-4, atol=1e-3)


def test_importance_weights_tighten_the_bound(vae: Vae) -> None:
    prior = VaePrior(vae, scale=0.1)
    w = prior.sample(400, generator=torch_generator(0))
    with torch.no_grad():
        single = prior.log_bound(w, generator=torch_generator(1)).mean()
    few, many = (prior.score(w, generator=torch_generator(1), n_codes=k).mean() for k in (4, 128))
    assert single < few < many + 0.02


def test_training_the_inference_network_tightens_the_bound_and_leaves_the_density(
    vae: Vae,
) -> None:
    prior = VaePrior(vae)
    # Kernels unlike those of the fit: there the copied encoder is a poor guess.
    w = 0.5 + 0.2 * torch.randn(300, 3, 3, generator=torch_generator(1))
    generator = torch_generator(2)
    decoder = {name: value.clone() for name, value in vae.state_dict().items()}
    with torch.no_grad():
        before = float(prior.log_bound(w, generator=generator).mean())
    optimiser = torch.optim.Adam(prior.trainable_parameters(), lr=5e-3)
    for _ in range(100):
        loss = -prior.log_bound(w, generator=generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        after = float(prior.log_bound(w, generator=generator).mean())
    exact = float(prior.score(w, generator=generator, n_codes=2000).mean())
    assert before + 0.02 < after < exact + 0.1
    assert all(torch.equal(vae.state_dict()[name], value) for name, value in decoder.items())


def test_gradient_of_the_kernels_is_that_of_the_bound(vae: Vae) -> None:
    prior = VaePrior(vae, scale=0.5).double()
    w = torch.randn(3, 3, 3, dtype=torch.float64, generator=torch_generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: prior.log_bound(x, generator=torch_generator(5)), (w,), atol=1e-4
    )
    prior.float()


def test_priors_may_share_one_inference_network(vae: Vae) -> None:
    first = VaePrior(vae, scale=0.1)
    second = VaePrior(vae, scale=0.3, inference=first.inference)
    first_ids = [id(p) for p in first.trainable_parameters()]
    assert first_ids == [id(p) for p in second.trainable_parameters()]
    assert all(p.requires_grad for p in first.trainable_parameters())
    assert not any(p.requires_grad for p in vae.parameters())
