"""The contenders that are not medseg, each called as its own users call it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tools.benchmark.measure import keep_mask, load_case, measured, memory_mib, seconds_of
from tools.benchmark.plain import load_plain
from tools.benchmark.plan import PHANTOM, REFERENCE

Predict = Callable[[Tensor], Tensor]


def _monai(folder: str, roi: int) -> tuple[Predict, nn.Module]:
    from monai.inferers import sliding_window_inference

    network = load_plain(folder)

    def predict(image: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = sliding_window_inference(
                image[None], (roi,) * 3, 1, network, overlap=0.5, mode="gaussian"
            )
        return logits[0].sigmoid() > 0.5

    return predict, network


def _nnunet(folder: str, roi: int, *, mirrored: bool) -> tuple[Predict, nn.Module, Any]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network = load_plain(folder)
    tool = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=mirrored,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    outputs = len(network.decoder.seg_layers[0].bias)  # type: ignore[union-attr,index]
    heads = SimpleNamespace(num_segmentation_heads=outputs)
    # What the sliding window reads of a trained model's plans.
    tool.manual_initialization(
        network,
        SimpleNamespace(get_label_manager=lambda _: heads),
        SimpleNamespace(patch_size=(roi,) * 3),
        None,
        {},
        "nnUNetTrainer",
        (0, 1, 2),
    )

    def predict(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return tool.predict_sliding_window_return_logits(image).float().sigmoid() > 0.5

    return predict, network, tool


def monai(
    *,
    folder: str,
    case: str,
    name: str,
    roi: int,
    repeats: int,
    whole: bool = False,
    one_window: bool = False,
) -> dict[str, Any]:
    """``monai.inferers.sliding_window_inference``, overlap 0.5, Gaussian weights."""
    from monai.data.utils import dense_patch_slices

    kept = load_case(folder, case)
    image = kept["whole" if whole else "image"]
    predict, network = _monai(folder, roi)
    padded = [max(n, roi) for n in image.shape[1:]]
    windows = len(dense_patch_slices(padded, (roi,) * 3, (roi // 2,) * 3))
    seen = _window(image, roi) if one_window else image
    row, mask = measured(
        lambda: predict(seen), repeats=repeats, warm_up=lambda: _warm(network, image, roi)
    )
    if one_window:
        return _times(row, windows, roi)
    if whole:
        start, size = kept["start"].tolist(), kept["image"].shape[1:]
        mask = mask[(..., *(slice(a, a + n) for a, n in zip(start, size, strict=True)))]
    row["windows"] = [[roi] * 3, windows]
    return row | keep_mask(mask, folder=folder, case=case, name=name, reference=REFERENCE)


def nnunet(
    *,
    folder: str,
    case: str,
    name: str,
    roi: int,
    repeats: int,
    mirrored: bool = False,
    one_window: bool = False,
) -> dict[str, Any]:
    """nnU-Net's predictor, tile step 0.5, on the crop."""
    image = load_case(folder, case)["image"]
    predict, network, tool = _nnunet(folder, roi, mirrored=mirrored)
    padded = [max(n, roi) for n in image.shape[1:]]
    windows = len(tool._internal_get_sliding_window_slicers(padded))
    seen = _window(image, roi) if one_window else image
    row, mask = measured(
        lambda: predict(seen), repeats=repeats, warm_up=lambda: _warm(network, image, roi)
    )
    if one_window:
        return _times(row, windows, roi)
    row["windows"] = [[roi] * 3, windows]
    return row | keep_mask(mask, folder=folder, case=case, name=name, reference=REFERENCE)


def _warm(network: nn.Module, image: Tensor, roi: int) -> None:
    """Run the network once on half a window: kernels are made, caches and threads are there."""
    with torch.inference_mode():
        network(_window(image, roi // 2)[None])


def _times(row: dict[str, Any], windows: int, roi: int) -> dict[str, Any]:
    """Return the row of one window as that of all, which cost the same."""
    row["seconds"] = [spent * windows for spent in row["seconds"]]
    note = f"1 of {windows} windows, times {windows}"
    return row | {"windows": [[roi] * 3, windows], "note": note}


def _window(image: Tensor, roi: int) -> Tensor:
    """Return the middle of an image, one window large."""
    starts = [max(0, (n - roi) // 2) for n in image.shape[1:]]
    return image[(slice(None), *(slice(a, a + roi) for a in starts))].contiguous()


def monai_cubes(*, folder: str, cubes: list[int], roi: int) -> dict[str, Any]:
    return _cubes(*_monai(folder, roi), folder, cubes, roi)


def nnunet_cubes(*, folder: str, cubes: list[int], roi: int) -> dict[str, Any]:
    return _cubes(*_nnunet(folder, roi, mirrored=False)[:2], folder, cubes, roi)


def _cubes(
    predict: Predict, network: nn.Module, folder: str, cubes: list[int], roi: int
) -> dict[str, Any]:
    """Predict the middle of the phantom in cubes of several sides."""
    image = load_case(folder, PHANTOM)["image"]
    _warm(network, image, roi)
    points = [
        {"side": side, "seconds": seconds_of(lambda s=side: predict(_window(image, s)))[0]}
        for side in cubes
    ]
    return {"points": points, "peak_mib": memory_mib()[1]}
