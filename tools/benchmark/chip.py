"""The most that this machine was seen to do: float32 products and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from tools.benchmark.measure import seconds_of


def peak(*, matrix: int, convolution: list[int], repeats: int = 4) -> dict[str, Any]:
    """Return 1e9 float32 operations per second of a matrix product and of a 3x3x3 convolution."""
    channels, side = convolution
    a, b = torch.rand(matrix, matrix), torch.rand(matrix, matrix)
    image = torch.rand(1, channels, side, side, side).to(memory_format=torch.channels_last_3d)
    kernel = torch.rand(channels, channels, 3, 3, 3)
    work = {
        "matmul": (lambda: a @ b, 2e-9 * matrix**3),
        "convolution": (
            lambda: F.conv3d(image, kernel, padding=1),
            2e-9 * 27 * channels**2 * side**3,
        ),
    }
    rates: dict[str, Any] = {}
    with torch.inference_mode():
        for name, (run, gigaflop) in work.items():
            run()
            times = [seconds_of(run)[0] for _ in range(repeats)]
            rates[f"{name}_gflops"] = gigaflop / min(times)
    large = torch.rand(64 * 2**20)
    other = torch.empty_like(large)
    times = [seconds_of(lambda: other.copy_(large))[0] for _ in range(repeats)]
    rates["copy_gb_per_s"] = 2 * large.numel() * 4e-9 / min(times)
    rates["peak_gflops"] = max(rates["matmul_gflops"], rates["convolution_gflops"])
    return rates
