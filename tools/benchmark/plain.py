"""The same weights for medseg's U-Net and for nnU-Net's: names, order, and how much work they are.

Needs torch alone; nnU-Net's own class is imported where it is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Largest difference of two float32 forward passes of the same weights that is rounding.
TOLERANCE = 1e-3


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of ``PlainConvUNet`` that compute what medseg's plain U-Net computes.

    Parameters
    ----------
    state : mapping of str to Tensor
        State of a `medseg.networks.unet.UNet` with the choices of the preset ``unet_3d``: not
        residual, concatenated skips, transposed convolutions, biases.

    Returns
    -------
    dict of str to Tensor
        By nnU-Net's parameter names. Its convolutions have biases where medseg has none, before a
        normalisation that removes them: they are 0. Its decoder takes the upsampled features
        before the skip, medseg after.
    """
    levels = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("encoder."))
    blocks = {"stem": "encoder.stages.0.0"}
    blocks |= {f"encoder.{k}": f"encoder.stages.{k + 1}.0" for k in range(levels)}
    blocks |= {f"decoder.{k}.block": f"decoder.stages.{k}" for k in range(levels)}
    new: dict[str, Tensor] = {}
    for ours, theirs in blocks.items():
        for i in range(sum(n.startswith(f"{ours}.convs.") for n in state)):
            weight = state[f"{ours}.convs.{i}.weight"]
            if ours.startswith("decoder") and i == 0:
                skip, up = weight.chunk(2, dim=1)
                weight = torch.cat([up, skip], dim=1)
            new[f"{theirs}.convs.{i}.conv.weight"] = weight
            new[f"{theirs}.convs.{i}.conv.bias"] = weight.new_zeros(len(weight))
            new[f"{theirs}.convs.{i}.norm.weight"] = state[f"{ours}.norms.{i}.gain"]
            new[f"{theirs}.convs.{i}.norm.bias"] = state[f"{ours}.norms.{i}.shift"]
    outputs = len(state["head.bias"])
    for k in range(levels):
        for kind in ("weight", "bias"):
            new[f"decoder.transpconvs.{k}.{kind}"] = state[f"decoder.{k}.project.{kind}"]
        # The coarse heads serve deep supervision and are never run here.
        width = len(state[f"decoder.{k}.project.bias"])
        new[f"decoder.seg_layers.{k}.weight"] = torch.zeros(outputs, width, 1, 1, 1)
        new[f"decoder.seg_layers.{k}.bias"] = torch.zeros(outputs)
    new[f"decoder.seg_layers.{levels - 1}.weight"] = state["head.weight"][:, :, None, None, None]
    new[f"decoder.seg_layers.{levels - 1}.bias"] = state["head.bias"]
    return {name: value.detach().contiguous().clone() for name, value in new.items()}


def plain_network(*, widths: Sequence[int], in_channels: int, out_channels: int) -> nn.Module:
    """Return nnU-Net's ``PlainConvUNet`` with the arguments that its planner gives it."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    levels = len(widths)
    return PlainConvUNet(
        input_channels=in_channels,
        n_stages=levels,
        features_per_stage=list(widths),
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * levels,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
        n_conv_per_stage=[2] * levels,
        num_classes=out_channels,
        n_conv_per_stage_decoder=[2] * (levels - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def load_plain(folder: str) -> nn.Module:
    """Return nnU-Net's network with the benchmark's weights, in evaluation."""
    from safetensors.torch import load_file

    weights = load_file(Path(folder) / "plain.safetensors")
    name = "encoder.stages.{}.0.convs.0.conv.weight"
    levels = len({key.split(".")[2] for key in weights if key.startswith("encoder.")})
    first = [weights[name.format(k)] for k in range(levels)]
    network = plain_network(
        widths=[len(w) for w in first],
        in_channels=first[0].shape[1],
        out_channels=len(weights["decoder.seg_layers.0.bias"]),
    )
    parameters = dict(network.named_parameters())
    if set(parameters) != set(weights):
        odd = sorted(set(parameters) ^ set(weights))
        raise RuntimeError(f"nnU-Net's network has other parameters than were mapped: {odd[:6]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return network.eval()


def prove_equality(*, folder: str) -> dict[str, Any]:
    """Return the largest difference between nnU-Net's network and medseg's on one patch."""
    from safetensors.torch import load_file

    probe = load_file(Path(folder) / "probe.safetensors")
    network = load_plain(folder)
    with torch.inference_mode():
        logits = network(probe["patch"])
    ours = probe["logits"]
    if logits.shape != ours.shape:
        raise RuntimeError(f"logits have shapes {tuple(logits.shape)} and {tuple(ours.shape)}")
    difference = float((logits - ours).abs().max())
    return {
        "patch": list(probe["patch"].shape),
        "max_difference": difference,
        "logits_std": float(ours.std()),
        "tolerance": TOLERANCE,
        "equal": difference <= TOLERANCE,
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def gigaflop(
    shape: Sequence[int], *, widths: Sequence[int], in_channels: int, out_channels: int
) -> float:
    """Return the 1e9 floating point operations (a multiply-add is two) of one forward pass.

    Convolutions only: normalisation and activation are below one percent of the operations. An odd
    length is halved upwards, as medseg's network does, which pads nothing.
    """
    levels = range(len(widths))
    voxels = [math.prod(-(-length // 2**level) for length in shape) for level in levels]
    inputs = [in_channels, *widths[:-1]]
    down = sum(
        27 * (before + width) * width * n
        for before, width, n in zip(inputs, widths, voxels, strict=True)
    )
    up = sum(
        8 * coarse * fine * n_coarse + 27 * 3 * fine * fine * n_fine
        for (fine, coarse), (n_fine, n_coarse) in zip(
            pairwise(widths), pairwise(voxels), strict=True
        )
    )
    head = widths[0] * out_channels * voxels[0]
    return 2e-9 * (down + up + head)
