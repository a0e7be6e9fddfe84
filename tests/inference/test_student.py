"""A network that tells its own uncertainty: how its outputs are read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg.data.regions import RegionSettings
from medseg.inference.model import Model, ModelSpec, build_network, load_model
from medseg.inference.posterior import Head, predict_prepared
from medseg.inference.predict import predict_case
from medseg.inference.settings import PredictSettings
from medseg.inference.uncertainty import (
    RunningStatistics,
    bernoulli_entropy_nats,
    statistics_of_share,
)
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings

CPU = PredictSettings(device="cpu", precision="float32", engine="eager")
REGIONS = RegionSettings(names=("core", "whole"))


def spec(**changes):
    base = ModelSpec(
        architecture=UNetSettings(in_channels=2, out_channels=4, widths=(3, 4)),
        channels=("flair", "t1c"),
        regions=REGIONS,
        region_definition={"core": (1, 3), "whole": (1, 2, 3)},
        preprocess=PreprocessSettings(spacing_mm=(3.0, 3.0, 3.0)),
        has_share=True,
        method="gaussian_distillation",
    )
    return replace(base, **changes)


@pytest.mark.parametrize(("mean", "share"), [(0.3, 0.2), (0.9, 0.6), (0.02, 0.05)])
def test_the_statistics_are_those_of_samples_of_a_beta(mean, share):
    precision = (1 - share) / share
    draws = torch.distributions.Beta(mean * precision, (1 - mean) * precision)
    torch.manual_seed(0)
    sampled = RunningStatistics()
    for _ in range(20):
        sampled.add(draws.sample((20000,)).float())
    found = statistics_of_share(torch.tensor([mean]), torch.tensor([share]))
    wanted = sampled.result()
    assert float(found.variance) == pytest.approx(float(wanted.variance.mean()), rel=0.15)
    assert float(found.std) ** 2 == pytest.approx(share * mean * (1 - mean), rel=1e-5)
    assert float(found.expected_entropy_nats) == pytest.approx(
        float(wanted.expected_entropy_nats.mean()), abs=3e-3
    )


def test_members_that_agree_have_no_mutual_information_and_sure_ones_no_entropy():
    mean = torch.linspace(0, 1, 11)
    agreeing = statistics_of_share(mean, torch.zeros(11))
    assert float(agreeing.mutual_information_nats.max()) < 1e-4
    assert not agreeing.std.any()
    parted = statistics_of_share(mean, torch.ones(11))
    assert float(parted.expected_entropy_nats.abs().max()) < 1e-6
    torch.testing.assert_close(parted.mutual_information_nats, bernoulli_entropy_nats(mean))


class Fixed(nn.Module):
    """Says .8 and .3 of the two regions, and shares of .1 and .4, everywhere."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.logit(torch.tensor([0.8, 0.3, 0.1, 0.4])))

    def forward(self, image):
        return self.logits.view(1, 4, 1, 1, 1).expand(len(image), 4, *image.shape[2:])


def test_half_the_outputs_are_the_regions_and_half_their_shares():
    head = Head(REGIONS, has_share=True)
    image = torch.ones(2, 5, 6, 7)
    found = predict_prepared(Fixed().eval(), image, head=head, settings=CPU)
    assert found.statistics.probability.shape == (2, 5, 6, 7)
    assert found.mask[0].all()
    assert not found.mask[1].any()
    std = [(0.1 * 0.8 * 0.2) ** 0.5, (0.4 * 0.3 * 0.7) ** 0.5]
    torch.testing.assert_close(found.statistics.std[:, 0, 0, 0], torch.tensor(std))


def test_a_saved_student_predicts_its_uncertainty_in_one_pass(case, tmp_path):
    Model(build_network(spec()), spec()).save(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.spec.has_share
    prediction = predict_case(loaded, case, settings=CPU)
    assert prediction.samples == 1
    inside = prediction.probability[0] > 0
    assert bool(inside.any())
    assert float(prediction.std[0][inside].max()) > 0.01
    assert float(prediction.mutual_information_nats[0][inside].max()) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"has_share": False},
        {"regions": RegionSettings(mode="classes", names=("core", "whole"))},
        {"architecture": UNetSettings(in_channels=2, out_channels=2, widths=(3, 4))},
    ],
)
def test_outputs_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=r"has_share|outputs"):
        spec(**changes)
