import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medseg.errors import ModelError
from medseg.networks.conv_factory import TorchConvFactory
from medseg.variational.conv import ConvGeometry, VariationalConv
from medseg.variational.posterior import MeanFieldGaussian
from medseg.variational.settings import VariationalSettings

SETTINGS = VariationalSettings(relative_std=0.3, max_relative_std=None)


class OtherConv(nn.Conv2d):
    """A class whose arithmetic nobody described."""


def make(dims=3, *, estimator="local", seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 3, 3, padding=1, **options)
    settings = VariationalSettings(relative_std=0.3, max_relative_std=None, estimator=estimator)
    return conv, VariationalConv.from_conv(conv, settings=settings)


def image_of(dims, *, size=5, batch=1, seed=5):
    return torch.randn(batch, 2, *[size] * dims, generator=torch.Generator().manual_seed(seed))


def test_the_arithmetic_of_the_fast_convolution_is_kept():
    conv = TorchConvFactory(3)(2, 3, kernel_size=3, stride=2, bias=True)
    twin = VariationalConv.from_conv(conv, settings=SETTINGS).eval()
    assert type(twin.to_conv()) is type(conv) is not nn.Conv3d
    assert torch.equal(twin(image_of(3)), conv(image_of(3)))
    assert torch.equal(twin.to_conv()(image_of(3)), conv(image_of(3)))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"bias": False}])
def test_evaluation_uses_the_mean_exactly(dims, options):
    conv, twin = make(dims, **options)
    assert torch.equal(twin.eval()(image_of(dims)), conv(image_of(dims)))


def test_groups_and_named_padding():
    conv = nn.Conv3d(4, 4, 3, padding="same", groups=2)
    image = torch.randn(1, 4, 4, 5, 6)
    twin = VariationalConv.from_conv(conv, settings=SETTINGS)
    assert torch.equal(twin.eval()(image), conv(image))
    assert torch.equal(twin.to_conv()(image), conv(image))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_both_estimators_have_the_exact_moments(dims, estimator):
    # Both are held against the closed form, mean A and variance B, so they agree with each other.
    conv, twin = make(dims, estimator=estimator, stride=2)
    image, n = image_of(dims), 4000
    twin.train().generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        drawn = torch.cat([twin(image) for _ in range(n)]).double()
        mean = conv(image)[0].double()
        plain = copy.deepcopy(conv)
        plain.weight.copy_(twin.posterior.std.square())
        plain.bias.zero_()
        variance = plain(image.square())[0].double()
    error_mean = (drawn.mean(0) - mean) / (variance / n).sqrt()
    error_variance = (drawn.var(0) / variance - 1) / math.sqrt(2 / n)
    assert error_mean.abs().max() < 4.5
    assert error_variance.abs().max() < 4.5


def test_local_noise_is_independent_between_cases():
    _, twin = make()
    image = image_of(3).expand(2, -1, -1, -1, -1)
    first, second = twin.train()(image)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_gradients_reach_every_parameter(estimator):
    _, twin = make(estimator=estimator)
    twin.train()(image_of(3)).square().mean().backward()
    assert set(dict(twin.named_parameters())) == {"bias", "posterior.mean", "posterior.log_std"}
    for parameter in twin.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_gradient_is_finite_where_the_image_is_zero():
    _, twin = make()
    image = torch.zeros(1, 2, 6, 6, 6)
    image[..., :2] = image_of(3, size=6)[..., :2]
    image.requires_grad_()
    twin.train()(image).sum().backward()
    assert image.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in twin.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_is_kept(dims):
    _, twin = make(dims)
    memory_format = torch.channels_last if dims == 2 else torch.channels_last_3d
    twin = twin.to(memory_format=memory_format).train()
    image = image_of(dims, batch=2).contiguous(memory_format=memory_format)
    assert twin(image).is_contiguous(memory_format=memory_format)


def test_same_generator_same_noise_and_global_state_untouched():
    _, twin = make()
    before = torch.random.get_rng_state()
    outputs = []
    for _ in range(2):
        twin.train().generator = torch.Generator().manual_seed(4)
        outputs.append(twin(image_of(3)))
    assert torch.equal(*outputs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_log_std_starts_relative_to_the_kernels():
    conv, _ = make()
    with torch.no_grad():
        conv.weight.mul_(7.0)
    twin = VariationalConv.from_conv(
        conv, settings=VariationalSettings(relative_std=0.2, max_relative_std=0.5)
    )
    rms = conv.weight.square().mean().sqrt()
    torch.testing.assert_close(twin.posterior.std, (0.2 * rms).expand_as(conv.weight))
    torch.testing.assert_close(twin.posterior.max_log_std, (0.5 * rms).log())


def test_calls_register_nothing():
    _, twin = make()
    names = list(dict(twin.named_parameters(remove_duplicate=False)))
    twin.train()(image_of(3))
    twin.eval()(image_of(3))
    assert list(dict(twin.named_parameters(remove_duplicate=False))) == names
    assert set(twin.state_dict()) == {"bias", "posterior.mean", "posterior.log_std"}


@pytest.mark.parametrize("bias", [True, False])
def test_back_to_a_plain_convolution(bias):
    conv, twin = make(bias=bias)
    conv.weight.requires_grad_(False)
    twin = VariationalConv.from_conv(conv, settings=SETTINGS)
    before = torch.random.get_rng_state()
    back = twin.to_conv()
    assert torch.equal(before, torch.random.get_rng_state())
    assert back.state_dict().keys() == conv.state_dict().keys()
    assert repr(back) == repr(conv)
    for name, value in conv.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    assert not back.weight.requires_grad
    assert not twin.posterior.log_std.requires_grad


def test_bf16_autocast_stays_near_float32():
    _, twin = make()
    image, outputs = image_of(3, size=3), []
    twin.train()
    for enabled in (True, False):
        twin.generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            outputs.append((twin.eval()(image).float(), twin.train()(image).float()))
    (low_mean, low), (mean, _) = outputs
    torch.testing.assert_close(low_mean, mean, atol=0.02, rtol=0.02)
    low.sum().backward()
    assert twin.posterior.log_std.grad.isfinite().all()


def test_refuses_what_it_cannot_copy():
    with pytest.raises(ModelError, match="reflect"):
        VariationalConv.from_conv(
            nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), settings=SETTINGS
        )
    conv = nn.Conv2d(1, 1, 3)
    nn.init.zeros_(conv.weight)
    with pytest.raises(ModelError, match="it is 0"):
        VariationalConv.from_conv(conv, settings=SETTINGS)
    line = MeanFieldGaussian(torch.ones(1, 1, 3), 0.0)
    with pytest.raises(ModelError, match="Conv2d with 1 axes"):
        VariationalConv(line, bias=None, geometry=ConvGeometry(nn.Conv2d, (1,), (1,), (1,)))
    with pytest.raises(ModelError, match="OtherConv"):
        VariationalConv.from_conv(OtherConv(1, 1, 3), settings=SETTINGS)


@pytest.mark.parametrize(
    "wrong", [{"relative_std": 0.0}, {"relative_std": 0.5, "max_relative_std": 0.4}, {"std": 1}]
)
def test_settings_refuse(wrong):
    with pytest.raises(ValidationError):
        VariationalSettings(**wrong)
