"""One training step, on the same patches, in medseg's manner and in others'."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.data.training_set import AugmentSettings, Batch, PatchSampler, PatchSettings
from medseg.data.training_set import TrainingCase as Subject
from medseg.losses.segmentation import LossSettings
from medseg.networks.convolution import Conv3d, PointwiseConv
from medseg.networks.norm_act import LEAKY_SLOPE, InstanceNormAct
from medseg.networks.presets import unet_3d, unet_short_3d
from medseg.networks.unet import UNet, UNetSettings
from medseg.priors.fit import FitPriorSettings, fit_priors, source_centred_priors
from medseg.priors.harvest import harvest
from medseg.priors.layer_priors import LayerPriors
from medseg.seeding import seeded_torch
from medseg.training.loop import TrainingSettings, train
from medseg.training.objective import SegmentationObjective, VariationalObjective
from medseg.training.transfer import MethodSettings
from medseg.variational.convert import to_variational
from medseg.variational.kl import network_kl
from tools.benchmark.measure import Clock, load_case, memory_mib, seconds_of
from tools.benchmark.plan import PHANTOM
from tools.benchmark.shares import Shares

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu_,
    "leaky_relu": lambda x: F.leaky_relu_(x, LEAKY_SLOPE),
    "elu": F.elu_,
    "none": lambda x: x,
}


class PlainNormAct(nn.Module):
    """What `medseg.networks.norm_act.InstanceNormAct` computes, by torch's own modules."""

    def __init__(self, fused: InstanceNormAct) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(fused.gain.numel(), eps=fused.eps, affine=True)
        self.activation = fused.activation
        with torch.no_grad():
            self.norm.weight.copy_(fused.gain)
            if fused.shift is not None:
                self.norm.bias.copy_(fused.shift)

    def forward(self, image: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised, summed and activated image."""
        out = self.norm(image)
        return ACTIVATIONS[self.activation](out if residual is None else out + residual)


class PlainTwin(nn.Module):
    """A U-Net of medseg computed by torch's own layers in torch's own memory order."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.body = copy.deepcopy(network)
        for module in list(self.body.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, InstanceNormAct):
                    setattr(module, name, PlainNormAct(child))
                elif isinstance(child, Conv3d | PointwiseConv):
                    setattr(module, name, _plain_conv(child))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits; the grid must divide by the network's stride."""
        body = self.body
        features, skips = body.stem(image), []
        for stage in body.encoder:
            skips.append(features)
            features = stage(features)
        for stage in body.decoder:
            features = stage(features, skips.pop())
        return body.head(features)


def _plain_conv(layer: Conv3d | PointwiseConv) -> nn.Conv3d:
    weight = layer.weight if isinstance(layer, Conv3d) else layer.weight[:, :, None, None, None]
    n_out, n_in, size = weight.shape[:3]
    stride = layer.stride[0] if isinstance(layer, Conv3d) else 1
    plain = nn.Conv3d(n_in, n_out, size, stride, size // 2, bias=layer.bias is not None)
    with torch.no_grad():
        plain.weight.copy_(weight)
        if plain.bias is not None and layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


class _Patches:
    """A sampler; without loading it gives the same batch every time."""

    def __init__(self, subject: Subject, *, side: int, batch: int, loading: bool) -> None:
        self._sampler = PatchSampler(
            [subject],
            patch=PatchSettings(size=(side,) * 3, batch_size=batch),
            augment=AugmentSettings(),
            seed=0,
        )
        self._fixed = None if loading else self._sampler.batch(0)

    def batch(self, step: int) -> Batch:
        return self._fixed or self._sampler.batch(step)


def _subject(folder: str) -> Subject:
    kept = load_case(folder, PHANTOM)
    image, truth = kept["image"], kept["truth"].float()
    return Subject(
        identifier=PHANTOM,
        subject=PHANTOM,
        image=image,
        present=torch.ones(len(image), dtype=torch.bool),
        target=truth,
        known=torch.ones(len(truth), dtype=torch.bool),
        brain=image.abs().sum(0) > 0,
    )


def _network(name: str, subject: Subject, widths: list[int] | None) -> UNet:
    preset = {"unet_3d": unet_3d, "unet_short_3d": unet_short_3d}[name]
    settings: UNetSettings = preset(len(subject.image), len(subject.target))
    if widths is not None:
        settings = dataclasses.replace(settings, widths=tuple(widths))
    with seeded_torch(0, "benchmark"):
        return UNet(settings)


def ours(
    *,
    folder: str,
    network: str,
    widths: list[int] | None,
    side: int,
    batch: int,
    steps: int,
    method: str,
    loading: bool = False,
) -> dict[str, Any]:
    """Time the loop of medseg: plain fine-tuning, or variational with one of its priors."""
    subject = _subject(folder)
    patches = _Patches(subject, side=side, batch=batch, loading=loading)
    net: nn.Module = _network(network, subject, widths)
    row: dict[str, Any] = {}
    if method == "pr":
        objective: Any = SegmentationObjective(mode="regions", settings=LossSettings(), network=net)
    else:
        chosen = MethodSettings(method=method)  # type: ignore[arg-type]
        priors = _priors(net, chosen)
        net = to_variational(net, settings=chosen.variational)
        objective = VariationalObjective(
            network=net,
            priors=priors,
            mode="regions",
            loss=LossSettings(),
            elbo=chosen.elbo,
            observations=(int(subject.brain.sum()), 1, float(len(subject.known))),
            seed=0,
        )
        row["kl_seconds"] = _kl_seconds(net, priors, chosen.elbo.kl_fraction)
        row |= {"kl_fraction": chosen.elbo.kl_fraction, "estimator": chosen.variational.estimator}
    # The time of all processors, on a shared machine, counts what threads prepare as waiting.
    ahead = 2 if loading and Clock.now is time.perf_counter else 0
    settings = TrainingSettings(steps=steps + 1, device="cpu", log_every=10**6, batches_ahead=ahead)
    shares = Shares()
    with shares.watching(objective):
        train(net, objective, patches, settings=settings)  # type: ignore[arg-type]
    row |= {**shares.row(), "peak_mib": memory_mib()[1]}
    return row | ({"loading_share": row["shares"]["data"]} if loading else {})


def _priors(network: nn.Module, method: MethodSettings) -> LayerPriors:
    if method.method == "gaussian":
        return source_centred_priors(network, relative_std=method.prior_relative_std)
    # How well it fits does not matter to the cost of scoring with it.
    settings = FitPriorSettings(kind="vae", grouping="layer", model={"fit": {"max_steps": 3}})
    return fit_priors(harvest([network]), settings, seed=0)


def _kl_seconds(network: nn.Module, priors: LayerPriors, fraction: float) -> float:
    """Return the time of the KL, forward and backward, the second time it is computed."""

    def run() -> None:
        network_kl(network, priors, fraction=fraction).backward()

    run()
    spent, _ = seconds_of(run)
    network.zero_grad()
    return spent


def plain(
    *,
    folder: str,
    network: str,
    widths: list[int] | None,
    side: int,
    batch: int,
    steps: int,
) -> dict[str, Any]:
    """Time a loop of plain torch in float32: same network, patches, loss and optimiser."""
    subject = _subject(folder)
    fused = _network(network, subject, widths)
    twin = PlainTwin(fused)
    patches = _Patches(subject, side=side, batch=batch, loading=False).batch(0)
    with torch.inference_mode():
        difference = float((twin(patches.image) - fused(patches.image)).abs().max())
    optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-3)

    def step() -> None:
        logits = twin(patches.image)
        entropy = F.binary_cross_entropy_with_logits(logits, patches.target)
        chance, target = logits.sigmoid().flatten(2), patches.target.flatten(2)
        total = chance.sum(2) + target.sum(2)
        loss = entropy + (1 - (2 * (chance * target).sum(2) + 1) / (total + 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 5.0)
        optimiser.step()
        float(loss.detach())

    return {**_steps(step, steps), "max_difference": difference}


def _steps(step: Callable[[], None], steps: int) -> dict[str, Any]:
    step()
    spent = statistics.median(seconds_of(step)[0] for _ in range(steps))
    return {"seconds_per_step": spent, "peak_mib": memory_mib()[1], "n": steps}


def monai(
    *,
    folder: str,
    network: str,
    widths: list[int] | None,
    side: int,
    batch: int,
    steps: int,
    loading: bool = False,
) -> dict[str, Any]:
    """Time the loop of MONAI's tutorials: DynUNet of the same plan, DiceCELoss, Adam."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    subject = _subject(folder)
    same = _network(network, subject, widths)
    levels = len(same.settings.widths)
    net = DynUNet(
        spatial_dims=3,
        in_channels=len(subject.image),
        out_channels=len(subject.target),
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(same.settings.widths),
        norm_name=("INSTANCE", {"affine": True}),
        trans_bias=True,
    )
    loss_of, optimiser = DiceCELoss(sigmoid=True), torch.optim.Adam(net.parameters(), lr=1e-3)
    batches = _monai_batches(subject, side, batch) if loading else None
    fixed = _Patches(subject, side=side, batch=batch, loading=False).batch(0)
    waited = [0.0]

    def step() -> None:
        image, target = fixed.image, fixed.target
        if batches is not None:
            spent, found = seconds_of(batches.__next__)
            waited[0] += spent
            image, target = found["image"], found["label"]
        optimiser.zero_grad()
        loss = loss_of(net(image), target)
        loss.backward()
        optimiser.step()
        float(loss.detach())

    step()
    waited[0] = 0.0
    spent, _ = seconds_of(lambda: [step() for _ in range(steps)])
    row = {
        "seconds_per_step": spent / steps,
        "peak_mib": memory_mib()[1],
        "n": steps,
        "parameters": [sum(p.numel() for p in m.parameters()) for m in (net, same)],
    }
    return row | ({"loading_share": waited[0] / spent} if loading else {})


def _monai_batches(subject: Subject, side: int, batch: int) -> Any:
    """Return an endless iterator of batches, cropped and augmented by MONAI's transforms."""
    from monai import transforms as t
    from monai.data import CacheDataset, DataLoader

    keys = ["image", "label"]
    steps = [
        t.RandCropByPosNegLabeld(
            keys, label_key="label", spatial_size=[side] * 3, pos=1, neg=1, num_samples=1
        ),
        t.RandFlipd(keys, prob=0.5, spatial_axis=0),
        t.RandAffined(
            keys,
            prob=0.5,
            rotate_range=[0.26] * 3,
            scale_range=[0.15] * 3,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        t.RandScaleIntensityd("image", factors=0.2, prob=0.5),
        t.RandShiftIntensityd("image", offsets=0.2, prob=0.5),
        t.RandGaussianNoised("image", prob=0.3, std=0.15),
    ]
    item = {"image": subject.image, "label": subject.target}
    data = CacheDataset([item] * batch, t.Compose(steps), progress=False)
    loader = DataLoader(data, batch_size=batch, num_workers=0)

    def endless() -> Any:
        while True:
            yield from loader

    return endless()
