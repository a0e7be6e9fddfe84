"""Figures of images: slices with contours and uncertainty, and kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medseg.report.arms import Arm, arm_name, source_name
from medseg.report.figure import INK, Picture, house_style, quiet_grid, safe_text, to_svg
from medseg.report.run_folder import Example, Priors

TRUTH, PREDICTION = "#56B4E9", "#E69F00"
MAX_ENTROPY_NATS = math.log(2)
_PREFERRED = ("flair", "t1c")
_MODALITIES = {"flair": "FLAIR", "t1": "T1", "t1c": "T1c", "t2": "T2"}


def example_picture(example: Example) -> Picture | None:
    """Return one axial slice per region: contours, uncertainty in nats, volume with interval."""
    image = np.asarray(example.arrays["image"], dtype=float)
    truth = np.asarray(example.arrays["truth"]) > 0
    if image.ndim != 4 or truth.ndim != 4:
        return None
    regions = [str(r) for r in example.about.get("regions") or range(len(truth))][: len(truth)]
    channels = _channels(example, len(image))
    with house_style():
        figure = Figure(figsize=(9.0, 2.5 * len(regions) + 0.35), layout="constrained")
        widths = [1.0] * (len(channels) + 1) + [0.95]
        panels = figure.subplots(len(regions), len(widths), squeeze=False, width_ratios=widths)
        for place, (line, region) in enumerate(zip(panels, regions, strict=True)):
            _region_line(line, example, place=place, region=region, channels=channels)
        handles = [
            Line2D([], [], color=TRUTH, linewidth=2),
            Line2D([], [], color=PREDICTION, linewidth=2, linestyle=(0, (3, 1))),
        ]
        figure.legend(handles, ["truth", "prediction"], loc="outside lower center", ncols=2)
        svg = to_svg(figure, alt=_example_alt(example, regions))
    return Picture(svg, _example_caption(example, regions), wide_px=760)


def _example_alt(example: Example, regions: Sequence[str]) -> str:
    case = example.about.get("case", example.name)
    return f"Case {case} ({example.name}): slice with contours of {', '.join(regions)}."


def _example_caption(example: Example, regions: Sequence[str]) -> str:
    about = example.about
    arm = Arm(str(about.get("method", "?")), str(about.get("source", "none")))
    found = about.get("dsc")
    scores = found if isinstance(found, dict) else {}
    parts = [
        f"{region} {float(scores[region]):.3f}"
        for region in regions
        if isinstance(scores.get(region), (int, float))
    ]
    dsc = f" DSC over the whole case: {', '.join(parts)}." if parts else ""
    return (
        f"Case {about.get('case', example.name)}, {arm_name(arm)}, n = {about.get('n', '?')} "
        f"target training subjects; one case, the axial slice with the most of each region.{dsc}"
    )


def _channels(example: Example, count: int) -> list[tuple[int, str]]:
    """Return at most two channels, FLAIR and T1c first: these show core and oedema best."""
    names = [str(name) for name in example.about.get("modalities") or []][:count]
    names += [f"channel {place}" for place in range(len(names), count)]
    order = sorted(range(count), key=lambda i: (names[i].lower() not in _PREFERRED, i))
    return [(place, names[place]) for place in sorted(order[:2])]


def _slice(volume: np.ndarray, z: int, box: tuple[slice, slice], *, flip: bool) -> np.ndarray:
    """Return one axial slice with rows from back to front, in radiological view when ``flip``."""
    plane = volume[:, :, z][box].T
    return plane[:, ::-1] if flip else plane


def _box(image: np.ndarray) -> tuple[slice, slice]:
    """Return the part of the axial plane that is not background, with a margin of two voxels."""
    inside = (image != image[:, :1, :1, :1]).any(axis=(0, 3))
    if not inside.any():
        return slice(None), slice(None)
    spans = []
    for axis in (1, 0):
        where = np.flatnonzero(inside.any(axis=axis))
        spans.append(slice(max(0, where[0] - 2), where[-1] + 3))
    return spans[0], spans[1]


def _best_slice(truth: np.ndarray, probability: np.ndarray) -> int:
    areas = truth.sum(axis=(0, 1))
    if not areas.any():
        areas = probability.sum(axis=(0, 1))
    return int(np.argmax(areas))


def _region_line(
    line: Sequence[Axes],
    example: Example,
    *,
    place: int,
    region: str,
    channels: Sequence[tuple[int, str]],
) -> None:
    image = np.asarray(example.arrays["image"], dtype=float)
    truth = np.asarray(example.arrays["truth"])[place] > 0
    probability = np.asarray(example.arrays["probability"], dtype=float)[place]
    # In RAS the patient's right lies at high x; turned round, it is where radiology shows it.
    ras = str(example.about.get("orientation", "RAS")).upper().startswith("RA")
    box, z = _box(image), _best_slice(truth, probability)
    spacing = [*(example.about.get("spacing_mm") or ()), 1.0, 1.0][:2]
    aspect = float(spacing[1]) / float(spacing[0])
    mask = _slice(truth.astype(float), z, box, flip=ras)
    guess = _slice(probability, z, box, flip=ras)
    for axes, (channel, name) in zip(line, channels, strict=False):
        plane = _slice(image[channel], z, box, flip=ras)
        low, high = np.quantile(image[channel], [0.01, 0.998])
        axes.imshow(
            plane,
            cmap="gray",
            vmin=low,
            vmax=high,
            origin="lower",
            aspect=aspect,
            interpolation="none",
        )
        _contours(axes, mask, guess)
        _bare(axes, f"{region} · {_MODALITIES.get(name.lower(), name)}")
        if ras:
            _side_marks(axes)
    _uncertainty(line[len(channels)], example, place=place, mask=mask, cut=(z, box, ras, aspect))
    _volume_bar(line[-1], example, region)


def _contours(axes: Axes, mask: np.ndarray, guess: np.ndarray) -> None:
    if mask.min() < 0.5 <= mask.max():
        axes.contour(mask, levels=[0.5], colors=[TRUTH], linewidths=1.5)
    if guess.min() < 0.5 <= guess.max():
        axes.contour(
            guess, levels=[0.5], colors=[PREDICTION], linewidths=1.5, linestyles=[(0, (3, 1))]
        )


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(safe_text(title))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _side_marks(axes: Axes) -> None:
    for x, side in ((0.03, "R"), (0.97, "L")):
        axes.text(
            x,
            0.5,
            side,
            color="white",
            ha="center",
            va="center",
            fontsize=8,
            transform=axes.transAxes,
        )


def _uncertainty(
    axes: Axes,
    example: Example,
    *,
    place: int,
    mask: np.ndarray,
    cut: tuple[int, tuple[slice, slice], bool, float],
) -> None:
    z, box, flip, aspect = cut
    _bare(axes, "uncertainty")
    if "uncertainty" not in example.arrays:
        axes.text(
            0.5, 0.5, "no uncertainty map", ha="center", va="center", transform=axes.transAxes
        )
        return
    volume = np.asarray(example.arrays["uncertainty"], dtype=float)[place]
    top = max(MAX_ENTROPY_NATS, float(volume.max()))
    shown = axes.imshow(
        _slice(volume, z, box, flip=flip), cmap="inferno", vmin=0, vmax=top, origin="lower",
        aspect=aspect, interpolation="none",
    )  # fmt: skip
    if mask.min() < 0.5 <= mask.max():
        axes.contour(mask, levels=[0.5], colors=[TRUTH], linewidths=0.9)
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.85, pad=0.03, aspect=18)
    bar.set_label("entropy (nats)", fontsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _volume_bar(axes: Axes, example: Example, region: str) -> None:
    axes.set_title("volume (ml)")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    interval = _numbers((example.about.get("volume_ml") or {}).get(region))
    reference = _numbers((example.about.get("reference_volume_ml") or {}).get(region))
    if len(interval) != 3 and not reference:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        return
    if len(interval) == 3:
        low, median, high = interval
        axes.plot(
            [low, high], [1, 1], color=PREDICTION, linewidth=5, solid_capstyle="butt", alpha=0.6
        )
        axes.plot([median], [1], "o", color=PREDICTION, markersize=7, markeredgecolor=INK)
        text = f"{median:.1f}  [{low:.1f}, {high:.1f}]"
        axes.text(median, 1.22, text, ha="center", va="bottom", fontsize=8)
    if reference:
        axes.plot([reference[0]] * 2, [0.72, 1.16], color=TRUTH, linewidth=2.5)
        axes.text(
            reference[0], 0.68, f"truth {reference[0]:.1f}", ha="center", va="top", fontsize=8
        )
    ends = [*interval, *reference]
    room = 0.45 * (max(ends) - min(ends)) + 0.12 * max(ends) + 0.1
    axes.set_xlim(max(0.0, min(ends) - room), max(ends) + room)
    axes.set_ylim(0.2, 1.7)
    quiet_grid(axes, axis="x")


def _numbers(value: object) -> list[float]:
    found = value if isinstance(value, (list, tuple)) else [value]
    return [float(v) for v in found if isinstance(v, (int, float)) and math.isfinite(v)]


def kernel_picture(priors: Priors, *, side: int = 8) -> Picture | None:
    """Return central slices of real kernels beside those sampled from each prior."""
    sets = _kernel_sets(priors.kernels)
    if "real" not in sets:
        return None
    limit = float(np.quantile(np.abs(sets["real"]), 0.98)) or 1.0
    columns = min(4, len(sets))
    lines = math.ceil(len(sets) / columns)
    with house_style():
        figure = Figure(figsize=(2.2 * columns + 0.7, 2.45 * lines), layout="constrained", dpi=144)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        figure.get_layout_engine().set(wspace=0.05)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
        for axes, (name, kernels) in zip(panels, sets.items(), strict=False):
            shown = axes.imshow(
                _montage(kernels, side),
                cmap="PuOr_r",
                vmin=-limit,
                vmax=limit,
                interpolation="nearest",
            )
            _bare(axes, name)
        for axes in panels[len(sets) :]:
            axes.set_visible(False)
        bar = figure.colorbar(shown, ax=list(panels), shrink=0.8, aspect=24, pad=0.015)
        bar.set_label("weight", fontsize=8)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        counts = {name: len(kernels) for name, kernels in sets.items()}
        svg = to_svg(
            figure, alt=f"Kernels of source {source_name(priors.source)}: {', '.join(counts)}."
        )
    shown_count = min(side**2, counts["real"])
    caption = (
        f"Source {source_name(priors.source)}: central 3 x 3 slices of {shown_count} real kernels "
        f"(of {counts['real']}) beside as many sampled from each prior, evenly picked, one colour "
        "scale."
    )
    return Picture(svg, caption)


def _kernel_sets(kernels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return real kernels first, then samples by name, each as (m, 3, 3) central slices."""
    names = sorted(kernels, key=lambda name: (name != "real", name))
    sets = {}
    for name in names:
        some = np.asarray(kernels[name], dtype=float)
        if some.ndim in (3, 4) and len(some):
            label = name.removeprefix("sampled_").replace("_", " · ")
            sets[label] = some[..., some.shape[-1] // 2] if some.ndim == 4 else some
    return sets


def _montage(kernels: np.ndarray, side: int) -> np.ndarray:
    """Return ``side`` x ``side`` kernels with a blank line between; missing ones stay blank."""
    step = kernels.shape[1] + 1
    sheet = np.full((side * step - 1, side * step - 1), np.nan)
    picked = np.unique(np.linspace(0, len(kernels) - 1, side * side).astype(int))
    for place, index in enumerate(picked):
        row, column = divmod(place, side)
        height, width = kernels[index].shape
        sheet[row * step : row * step + height, column * step : column * step + width] = kernels[
            index
        ]
    return sheet
