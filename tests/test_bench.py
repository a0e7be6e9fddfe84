"""The peers get medseg's weights; the work that is counted is the work that is done."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from medseg.data.training_set import AugmentSettings, PatchSampler, PatchSettings, TrainingCase
from medseg.losses.segmentation import LossSettings
from medseg.networks.presets import unet_3d, unet_short_3d
from medseg.networks.unet import UNet
from medseg.priors.fit import source_centred_priors
from medseg.training.loop import TrainingSettings, train
from medseg.training.objective import VariationalObjective
from medseg.variational.convert import to_variational
from medseg.variational.elbo import ElboSettings
from medseg.variational.settings import VariationalSettings
from tools.benchmark.plain import gigaflop, plain_weights
from tools.benchmark.plan import MONAI, NNUNET, PHANTOM, contender
from tools.benchmark.report import table, targets
from tools.benchmark.shares import PARTS, Shares
from tools.benchmark.steps import PlainTwin

WIDTHS, SHAPE = (4, 6, 8), (12, 8, 16)


def small_network() -> UNet:
    torch.manual_seed(0)
    network = UNet(dataclasses.replace(unet_3d(2, 3), widths=WIDTHS))
    with torch.no_grad():
        for parameter in network.parameters():
            # Fresh gains are 1 and biases 0, which would hide a mistake in their places.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def nnunet_forward(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """Return what ``PlainConvUNet`` computes, written down from its source without its classes."""

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        for i, step in enumerate((stride, 1)):
            conv, norm = f"{name}.convs.{i}.conv", f"{name}.convs.{i}.norm"
            x = F.conv3d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], step, 1)
            x = F.instance_norm(x, weight=weights[f"{norm}.weight"], bias=weights[f"{norm}.bias"])
            x = F.leaky_relu(x, 0.01)
        return x

    skips = [image]
    for level in range(len(WIDTHS)):
        skips.append(block(skips[-1], f"encoder.stages.{level}.0", 1 if level == 0 else 2))
    x = skips.pop()
    for stage in range(len(WIDTHS) - 1):
        up = f"decoder.transpconvs.{stage}"
        x = F.conv_transpose3d(x, weights[f"{up}.weight"], weights[f"{up}.bias"], 2)
        x = block(torch.cat([x, skips.pop()], 1), f"decoder.stages.{stage}", 1)
    head = f"decoder.seg_layers.{len(WIDTHS) - 2}"
    return F.conv3d(x, weights[f"{head}.weight"], weights[f"{head}.bias"])


def test_mapped_weights_compute_the_same_logits() -> None:
    network, image = small_network(), torch.randn(2, 2, *SHAPE)
    mapped = plain_weights(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(nnunet_forward(mapped, image), network(image))


def test_mapping_keeps_every_number() -> None:
    state = small_network().state_dict()
    kept = torch.cat([v.flatten() for v in plain_weights(state).values()])
    own = torch.cat([v.flatten() for v in state.values()])
    torch.testing.assert_close(kept[kept != 0].sort().values, own.sort().values)


def test_plain_twins_of_both_networks_compute_the_same_logits() -> None:
    torch.manual_seed(0)
    short = dataclasses.replace(unet_short_3d(2, 3), widths=WIDTHS)
    for network in (small_network(), UNet(short).eval()):
        image = torch.randn(2, 2, *SHAPE)
        with torch.no_grad():
            torch.testing.assert_close(
                PlainTwin(network)(image), network(image), atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("shape", [SHAPE, (9, 7, 13)])
def test_counted_work_is_what_torch_counts(shape: tuple[int, ...]) -> None:
    twin, image = PlainTwin(small_network()), torch.randn(1, 2, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(image)
    counted = gigaflop(shape, widths=WIDTHS, in_channels=2, out_channels=3)
    assert abs(counted * 1e9 / counter.get_total_flops() - 1) < 1e-9


def test_columns_of_a_table_line_up() -> None:
    lines = table(["a", "b"], [["x", "1.00"], ["longer", "10.00"]]).splitlines()
    assert lines[0] == "a           b"
    assert lines[3] == "longer  10.00"


def test_no_target_is_met_by_an_engine_whose_masks_disagree() -> None:
    def row(name: str, spent: float, overlap: float) -> dict[str, object]:
        kind = {"section": PHANTOM, "name": name, "status": "measured", "peak_mib": 1.0}
        return {**kind, "seconds": [spent], "dice_truth": [0.8], "dice_reference": [overlap]}

    rows = [
        row(contender("torch float32"), 2.0, 0.999),
        row(contender("OpenVINO int8"), 1.0, 0.98),
        row(NNUNET, 30.0, 0.9),
        row(MONAI, 30.0, 0.9),
    ]
    found = targets({"rows": rows, "cases": [{"name": PHANTOM}]})
    first = next(t for t in found if t["target"].startswith("default, times faster than nnU-Net"))
    assert first["value"] == 15.0
    assert first["met"]
    assert first["how"] == contender("torch float32")


def test_the_shares_of_a_step_add_up_and_watching_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    case = TrainingCase(
        identifier="a",
        subject="a",
        image=torch.randn(2, 9, 9, 9, generator=generator),
        present=torch.ones(2, dtype=torch.bool),
        target=(torch.rand(3, 9, 9, 9, generator=generator) < 0.2).float(),
        known=torch.ones(3, dtype=torch.bool),
        brain=torch.ones(9, 9, 9, dtype=torch.bool),
    )
    patch = PatchSettings(size=(8, 8, 8))
    sampler = PatchSampler([case], patch=patch, augment=AugmentSettings(), seed=0)
    weights, shares = [], Shares()
    for watched in (False, True):
        plain = small_network()
        network = to_variational(plain, settings=VariationalSettings())
        goal = VariationalObjective(
            network=network,
            priors=source_centred_priors(plain, relative_std=0.2),
            mode="regions",
            loss=LossSettings(),
            elbo=ElboSettings(),
            observations=(729, 1, 3.0),
            seed=0,
        )
        settings = TrainingSettings(steps=4, device="cpu")
        if watched:
            with shares.watching(goal):
                train(network, goal, sampler, settings=settings)
        else:
            train(network, goal, sampler, settings=settings)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*weights)
    row = shares.row()
    assert row["n"] == 3
    assert set(row["shares"]) == {*PARTS, "rest"}
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in row["shares"].values())
