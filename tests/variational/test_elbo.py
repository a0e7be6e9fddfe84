import pytest
import torch
from pydantic import ValidationError

from medseg.errors import TrainingError
from medseg.variational.elbo import ElboSettings, elbo_terms


def terms(**changes):
    options = {"voxels_per_scan": 1000, "n_scans": 5, "beta": 0.5, "outputs_per_voxel": 2}
    return elbo_terms(torch.tensor([0.1, 0.3]), torch.tensor(400.0), **(options | changes))


def test_data_term_is_the_sum_over_all_voxels_outputs_and_scans():
    found = terms()
    assert found.n_observations == 10_000
    torch.testing.assert_close(found.data_nats, torch.tensor(2000.0))
    torch.testing.assert_close(found.negative_elbo_nats, torch.tensor(2200.0))
    torch.testing.assert_close(found.loss, torch.tensor(0.22))
    assert found.as_log() == pytest.approx(
        {"data_nats": 2000.0, "kl_nats": 400.0, "beta": 0.5, "negative_elbo_nats": 2200.0}
    )


def test_patches_stand_for_the_whole_set():
    # Equal patches give the exact likelihood whatever their number: the batch is a mean.
    one = elbo_terms(torch.tensor([0.2]), torch.tensor(0.0), voxels_per_scan=7, n_scans=1, beta=1.0)
    many = elbo_terms(torch.full((9,), 0.2), one.kl_nats, voxels_per_scan=7, n_scans=1, beta=1.0)
    torch.testing.assert_close(one.data_nats, many.data_nats)


def test_more_scans_weigh_the_prior_less():
    shares = [float(0.5 * found.kl_nats / found.negative_elbo_nats) for found in
              (terms(n_scans=n) for n in (1, 5, 20))]  # fmt: skip
    assert shares == sorted(shares, reverse=True)


def test_gradients_reach_both_terms():
    data, kl = torch.tensor(0.1, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    elbo_terms(data, kl, voxels_per_scan=10, n_scans=2, beta=0.5).loss.backward()
    torch.testing.assert_close(data.grad, torch.tensor(1.0))
    torch.testing.assert_close(kl.grad, torch.tensor(0.5 / 20))


@pytest.mark.parametrize(
    ("changes", "value"),
    [({"n_scans": 0}, "it is 0"), ({"voxels_per_scan": -3}, "-3"), ({"beta": -0.1}, "-0.1")],
)
def test_refuses_impossible_sizes(changes, value):
    with pytest.raises(TrainingError, match=value):
        terms(**changes)


def test_beta_rises_to_its_value():
    schedule = ElboSettings(beta=2.0, warm_up_steps=4)
    assert [schedule.beta_at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert ElboSettings(beta=2.0, warm_up_steps=0).beta_at(0) == 2.0


@pytest.mark.parametrize("wrong", [{"beta": -1}, {"kl_fraction": 0.0}, {"warm_up": 3}])
def test_settings_refuse(wrong):
    with pytest.raises(ValidationError):
        ElboSettings(**wrong)
