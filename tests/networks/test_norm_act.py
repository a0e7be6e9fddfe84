"""The fused layer is torch's instance norm + sum + activation, in value, gradient and memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medseg.errors import ShapeError
from medseg.networks.norm_act import InstanceNormAct
from medseg.seeding import torch_generator

#: Where annotations are enforced, jaxtyping may speak first.
REFUSALS = (ShapeError, TypeCheckError)
ORDERS = ("first", "last", "strided")
ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "elu": F.elu,
    "none": lambda x: x,
}


def image_of(shape: tuple[int, ...], order: str, *, seed: int = 0) -> Tensor:
    image = 2 * torch.randn(shape, generator=torch_generator(seed, "image")) + 3
    if order == "strided":
        return image.transpose(-1, -2).contiguous().transpose(-1, -2)
    if order == "last":
        last = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
        return image.clone(memory_format=last)
    return image


def plain(image: Tensor, layer: InstanceNormAct, residual: Tensor | None, shift: bool) -> Tensor:
    normalised = F.instance_norm(
        image, weight=layer.gain, bias=layer.shift if shift else None, eps=layer.eps
    )
    summed = normalised if residual is None else normalised + residual
    return ACTIVATIONS[layer.activation](summed)


def layer_with(channels: int, activation: str, shift: bool) -> InstanceNormAct:
    layer = InstanceNormAct(channels, activation, shift=shift)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        layer.gain.normal_(1, 0.5, generator=torch_generator(1, "gain"))
        if layer.shift is not None:
            layer.shift.normal_(0, 0.5, generator=torch_generator(1, "shift"))
    return layer


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch_generator(2, "weight"))
    return list(torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs))


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    size=st.lists(st.integers(2, 7), min_size=2, max_size=3),
    order=st.sampled_from(ORDERS),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    has_residual=st.booleans(),
    shift=st.booleans(),
)
def test_is_torch_instance_norm_and_activation(
    batch, channels, size, order, activation, has_residual, shift
):
    shape = (batch, channels, *size)
    layer = layer_with(channels, activation, shift)
    image = image_of(shape, order).requires_grad_()
    residual = image_of(shape, "first", seed=3).requires_grad_() if has_residual else None
    inputs = [image, *layer.parameters(), *([residual] if residual is not None else [])]
    ours, theirs = layer(image, residual), plain(image, layer, residual, shift)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradient_is_that_of_finite_differences(order, activation):
    layer = layer_with(3, activation, shift=True).double()
    image = image_of((2, 3, 3, 2, 4), order).double().requires_grad_()
    residual = image_of((2, 3, 3, 2, 4), order, seed=5).double().requires_grad_()

    def function(image, residual, gain, shift):
        return torch.func.functional_call(layer, {"gain": gain, "shift": shift}, (image, residual))

    assert torch.autograd.gradcheck(function, (image, residual, *layer.parameters()))


@pytest.mark.parametrize("order", ["first", "last"])
def test_keeps_the_memory_order_forward_and_backward(order):
    image = image_of((2, 4, 3, 5, 4), order).requires_grad_()
    out = InstanceNormAct(4)(image)
    (grad,) = torch.autograd.grad(out.sum(), image)
    assert out.stride() == image.stride()
    assert grad.stride() == image.stride()


@pytest.mark.parametrize("order", ["first", "last"])
def test_is_exact_far_from_zero(order):
    image = image_of((2, 4, 8, 8, 8), order) + 1000
    exact = F.instance_norm(image.double())
    torch.testing.assert_close(InstanceNormAct(4, "none")(image).double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1), (3, 3, 3), (1, 2, 1)])
def test_constant_channel_gives_the_shift_and_finite_gradients(order, size):
    shape = (2, 3, *size)
    image = torch.zeros_like(image_of(shape, order)).add_(0.5).requires_grad_()
    layer = layer_with(3, "none", shift=True)
    out = layer(image)
    assert layer.shift is not None
    expected = layer.shift.detach().reshape(1, 3, *[1] * len(size)).expand(shape)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    assert all(torch.isfinite(grad).all() for grad in gradients(out, [image, layer.gain]))


@pytest.mark.parametrize("order", ["first", "last"])
def test_bf16_keeps_its_statistics_in_float32(order):
    image = (image_of((2, 3, 6, 5, 4), order) + 20).bfloat16().requires_grad_()
    layer = layer_with(3, "leaky_relu", shift=True)
    out = layer(image)
    exact = plain(image.float(), layer, None, True)
    assert out.dtype == torch.bfloat16
    # One rounding of the result: 2**-8 of its size.
    torch.testing.assert_close(out.float(), exact, rtol=2**-7, atol=2**-7)
    grads = gradients(out, [image, *layer.parameters()])
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32, torch.float32]


def kept_bytes(function, image: Tensor) -> int:
    """Bytes kept for the backward pass, the input's own not counted."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(image)
    kept.pop(image.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def test_keeps_less_than_torch_between_forward_and_backward():
    image = image_of((2, 8, 8, 8, 8), "last").requires_grad_()
    ours = kept_bytes(InstanceNormAct(8, "relu"), image)
    naive = nn.Sequential(nn.InstanceNorm3d(8, affine=True), nn.ReLU())
    assert ours < 1.1 * image.nbytes
    assert kept_bytes(naive, image) > 1.9 * image.nbytes


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 3)])
def test_refuses_images_of_other_channels(shape):
    with pytest.raises(REFUSALS, match=str(shape[1])):
        InstanceNormAct(3)(torch.zeros(shape))


def test_refuses_a_residual_of_another_shape():
    with pytest.raises(REFUSALS, match="residual"):
        InstanceNormAct(3)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
