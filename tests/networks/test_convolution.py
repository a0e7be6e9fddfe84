"""The fast convolutions are torch's, in value and gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from medseg.networks.conv_factory import TorchConvFactory
from medseg.networks.convolution import Conv3d, PointwiseConv, convolve_3d
from medseg.networks.precision import native_bf16
from medseg.seeding import seeded_torch


@given(
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6)),
    stride=st.integers(1, 3),
    biased=st.booleans(),
)
def test_convolution_in_slabs_is_convolution(batch, size, stride, biased):
    with seeded_torch(0, "slabs"):
        image = torch.randn(batch, 3, *size).requires_grad_()
        weight = torch.randn(4, 3, 3, 3, 3).requires_grad_()
        bias = torch.randn(4) if biased else None
    ours = convolve_3d(image, weight, bias, stride=stride, padding=1)
    exact = F.conv3d(
        image.double(), weight.double(), None if bias is None else bias.double(), stride, 1
    )
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)
    factor = torch.linspace(-1, 1, ours.numel()).reshape(ours.shape)
    mine = torch.autograd.grad((ours * factor).sum(), (image, weight))
    reference = torch.autograd.grad((exact * factor).sum(), (image, weight))
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 8, 8), (1, 4, 4), (4, 2, 3), (3, 3, 3), (8, 8, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.skipif(
    not native_bf16(torch.device("cpu"))[0], reason="this processor has no bf16 to be wrong in"
)
def test_gradients_in_bf16_are_those_of_float32(size, stride, batch):
    with seeded_torch(0, "bf16"):
        image, weight = torch.randn(batch, 32, *size), torch.randn(32, 32, 3, 3, 3)

    def gradient(dtype):
        kernel = weight.clone().requires_grad_()
        # What is not written would be found: freed memory is handed out again as it was left.
        freed = [torch.full((length,), torch.nan) for length in range(100, 60_000, 3000)]
        del freed
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = convolve_3d(image, kernel, None, stride=stride, padding=1)
        assert out.dtype == dtype
        (out.float() ** 2).sum().backward()
        return kernel.grad

    exact = gradient(torch.float32)
    for _ in range(5):
        torch.testing.assert_close(
            gradient(torch.bfloat16), exact, rtol=0.05, atol=0.02 * float(exact.abs().max())
        )


def test_the_layer_takes_the_slabs_for_one_small_volume(monkeypatch):
    batches = []
    conv3d = F.conv3d
    monkeypatch.setattr(F, "conv3d", lambda x, *rest: batches.append(len(x)) or conv3d(x, *rest))
    layer = TorchConvFactory(3)(2, 3, kernel_size=3, bias=True)
    assert isinstance(layer, Conv3d)
    assert layer(torch.zeros(1, 2, 8, 8, 8)).shape == (1, 3, 8, 8, 8)
    assert layer(torch.zeros(1, 2, 128, 128, 1)).shape == (1, 3, 128, 128, 1)
    assert batches == [2, 1]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_is_a_1x1_convolution(dims, bias):
    with seeded_torch(0, "pointwise"):
        layer = PointwiseConv(3, 5, bias=bias)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        image = torch.randn(2, 3, *[4] * dims)
    weight = layer.weight.reshape(5, 3, *[1] * dims)
    exact = (F.conv2d if dims == 2 else F.conv3d)(image, weight, layer.bias)
    torch.testing.assert_close(layer(image), exact)
