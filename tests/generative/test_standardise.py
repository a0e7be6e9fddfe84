import pytest
import torch

from medseg.generative.standardise import Standardisation, Standardiser
from medseg.seeding import torch_generator

KINDS: list[Standardisation] = ["none", "scale", "whiten"]


def vectors() -> torch.Tensor:
    generator = torch_generator(0)
    factor = torch.randn(6, 6, generator=generator) + 2 * torch.eye(6)
    return 0.01 * (torch.randn(500, 6, generator=generator) @ factor.T + 3)


@pytest.fixture(params=KINDS)
def standardiser(request: pytest.FixtureRequest) -> Standardiser:
    made = Standardiser(6)
    made.fit(vectors(), request.param)
    return made


def test_inverse_undoes_forward(standardiser: Standardiser) -> None:
    x = vectors()
    torch.testing.assert_close(standardiser.inverse(standardiser(x)), x, rtol=1e-4, atol=1e-6)


def test_log_det_is_the_change_of_volume(standardiser: Standardiser) -> None:
    jacobian = torch.autograd.functional.jacobian(standardiser.forward, vectors()[:1])
    expected = torch.linalg.slogdet(jacobian[0, :, 0]).logabsdet
    torch.testing.assert_close(standardiser.log_det, expected, rtol=1e-4, atol=1e-4)


def test_whitened_items_have_the_identity_covariance() -> None:
    made = Standardiser(6)
    made.fit(vectors(), "whiten")
    covariance = torch.cov(made(vectors()).T)
    torch.testing.assert_close(covariance, torch.eye(6), rtol=0, atol=0.05)


def test_scaled_items_have_unit_rms_and_keep_their_correlations() -> None:
    made = Standardiser(6)
    made.fit(vectors(), "scale")
    u = made(vectors())
    assert float(u.square().mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(torch.corrcoef(u.T), torch.corrcoef(vectors().T), rtol=0, atol=1e-4)


def test_items_that_do_not_vary_in_one_direction_stay_finite() -> None:
    flat = vectors()
    flat[:, 2] = 0.5
    made = Standardiser(6)
    made.fit(flat, "whiten")
    assert torch.isfinite(made(flat)).all()
