from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import ModelError
from medseg.generative import layers
from medseg.generative.base import GenerativeBase
from medseg.generative.catalog import make_model
from medseg.generative.fitting import FitRecord
from medseg.generative.pca import PcaSettings, Ppca
from medseg.generative.storage import read_folder, write_folder
from medseg.generative.vae import Vae, VaeSettings
from medseg.seeding import torch_generator


class Diverging(GenerativeBase):
    """Has one number, which its fit loses."""

    kind = "diverging"
    settings_type = PcaSettings

    def __init__(self) -> None:
        super().__init__((2,), PcaSettings())
        self.number = nn.Parameter(torch.zeros(()))

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        with torch.no_grad():
            self.number.fill_(float("inf"))
        return FitRecord(1, 0.0, None)


def test_fit_that_diverges_is_refused_naming_the_numbers() -> None:
    with pytest.raises(ModelError, match="number of this diverging are not"):
        Diverging().fit(torch.eye(2), generator=torch_generator(0))


def test_conditions_that_are_not_finite_are_refused() -> None:
    items = torch.randn(6, 3, generator=torch_generator(0))
    told = torch.zeros(6, 1)
    told[2] = torch.inf
    with pytest.raises(ModelError, match="5 of 6 are finite"):
        Vae((3,), VaeSettings(condition_size=1)).fit(
            items, generator=torch_generator(0), condition=told
        )


def test_fit_leaves_a_model_that_is_used_and_can_be_fitted_again() -> None:
    model = Vae((3,), VaeSettings()).requires_grad_(False)
    items = torch.randn(40, 3, generator=torch_generator(0))
    model.fit(items, generator=torch_generator(0))
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("spread", [0.0, 1e-9])
def test_items_that_hardly_differ_are_refused(spread: float) -> None:
    items = 1 + spread * torch.randn(20, 3, generator=torch_generator(0))
    with pytest.raises(ModelError, match="all 20 are the same"):
        make_model("ppca", (3,)).fit(items, generator=torch_generator(0))


def test_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    Ppca((3,), PcaSettings()).save(tmp_path)
    tensors, description = read_folder(tmp_path, "ppca")
    write_folder(tmp_path, "vae", tensors, description)
    with pytest.raises(ModelError, match="of kind 'vae' must fit, but: it is described as 'ppca'"):
        Vae.load(tmp_path)
    with pytest.raises(ModelError, match="must fit, but"):
        Ppca.restore({**description, "event_shape": [4]}, tensors)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layers_are_built_and_started_without_the_global_generator(dims: int) -> None:
    before = torch.random.get_rng_state()
    net = nn.Sequential(
        layers.convolution(dims, 2, 3, kernel_size=3, padding=1),
        layers.transposed_convolution(dims, 3, 4, kernel_size=4, stride=2, padding=1),
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](4),
        nn.Flatten(),
        layers.dense([4 * 8**dims, 5, 2]),
    )
    states = []
    for seed in (1, 2, 1):
        layers.reset(net, generator=torch_generator(seed))
        states.append([p.detach().clone() for p in net.parameters()])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert net(torch.ones(2, 2, *[4] * dims)).shape == (2, 2)


def test_start_keeps_the_variance_of_values() -> None:
    layer = layers.linear(400, 400)
    layers.reset(layer, generator=torch_generator(0))
    values = torch.randn(500, 400, generator=torch_generator(1))
    assert float(layer(values).detach().var()) == pytest.approx(1, abs=0.05)
