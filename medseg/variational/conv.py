"""The variational convolution: one class for two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import ModelError
from medseg.networks.convolution import Conv3d, convolve_3d
from medseg.variational.posterior import MeanFieldGaussian
from medseg.variational.settings import VariationalSettings

Estimator = Literal["local", "weight"]

#: Smallest variance under the square root: zeros outside the brain make it 0, where the slope of
#: the root is infinite and would turn gradients into NaN.
VARIANCE_FLOOR = 1e-16

ConvClass = type[nn.Conv2d] | type[nn.Conv3d]


@dataclass(frozen=True)
class ConvGeometry:
    """How the kernels are applied: by which class, and its words as in ``torch.nn.Conv3d``."""

    kind: ConvClass
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int = 1


def _torch_2d(x: Tensor, weight: Tensor, bias: Tensor | None, how: ConvGeometry) -> Tensor:
    return functional.conv2d(x, weight, bias, how.stride, how.padding, how.dilation, how.groups)


def _torch_3d(x: Tensor, weight: Tensor, bias: Tensor | None, how: ConvGeometry) -> Tensor:
    return functional.conv3d(x, weight, bias, how.stride, how.padding, how.dilation, how.groups)


def _fast_3d(x: Tensor, weight: Tensor, bias: Tensor | None, how: ConvGeometry) -> Tensor:
    return convolve_3d(x, weight, bias, stride=how.stride[0], padding=int(how.padding[0]))


#: Kernel axes and arithmetic of every class with a variational twin: the same arithmetic makes the
#: twin's mean the network itself, to the last bit.
_CLASSES: dict[ConvClass, tuple[int, Callable[..., Tensor]]] = {
    nn.Conv2d: (2, _torch_2d),
    nn.Conv3d: (3, _torch_3d),
    Conv3d: (3, _fast_3d),
}


class VariationalConv(nn.Module):
    """A 2D or 3D convolution with a factorised Gaussian over its weights and a plain bias.

    In training each call draws noise, by one of two estimators with the same moments:

    - ``"local"``: ``y = A + sqrt(B) * noise`` with ``A = x * mean + bias`` and
      ``B = x^2 * std^2`` convolutions: one draw per output voxel, gradients of lower variance;
    - ``"weight"``: ``y = x * (mean + std * noise) + bias``, one convolution, one draw per weight.

    In evaluation the mean is used, unless ``sampled_weights`` holds one draw for all calls.

    Parameters
    ----------
    posterior : MeanFieldGaussian
        Over weights of shape (out, in / groups, *k), two or three kernel axes.
    bias : Tensor, shape (out,), optional
        Stays deterministic; copied.
    geometry : ConvGeometry
        Stride, padding, dilation and groups.
    estimator : "local" or "weight"
        See above.

    Raises
    ------
    ModelError
        When the class of convolution has no twin, or other kernel axes than the weights.

    Notes
    -----
    Samples of "local" are independent between output voxels, those of "weight" are not: the
    marginal moments agree, joint ones do not. Maps of uncertainty need ``sampled_weights``.

    References
    ----------
    Kingma, Salimans and Welling, Variational dropout and the local reparameterization trick,
    2015, section 2.2, equation 6.
    """

    def __init__(
        self,
        posterior: MeanFieldGaussian,
        *,
        bias: Tensor | None,
        geometry: ConvGeometry,
        estimator: Estimator = "local",
    ) -> None:
        super().__init__()
        dims, self._arithmetic = _CLASSES.get(geometry.kind, (None, _torch_3d))
        if dims != posterior.mean.ndim - 2:
            known = ", ".join(kind.__qualname__ for kind in _CLASSES)
            raise ModelError(
                f"a variational convolution has the kernel axes of its class, one of {known}, but "
                f"it is {geometry.kind.__qualname__} with {posterior.mean.ndim - 2} axes",
                hint="convert plain convolutions only",
            )
        self.posterior = posterior
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.geometry = geometry
        self.estimator: Estimator = estimator
        # Set by the context managers of ``sampling`` alone. A held weight is a plain tensor: a
        # Parameter assigned here would be registered a second time.
        self.held_weight: Tensor | None = None
        self.generator: torch.Generator | None = None

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d | nn.Conv3d, *, settings: VariationalSettings
    ) -> VariationalConv:
        """Return the variational twin of ``conv``: its weights become the means.

        Parameters
        ----------
        conv : nn.Conv2d or nn.Conv3d
            Zero padding only; not changed.
        settings : VariationalSettings
            ``log_std`` starts at ``log(relative_std * rms of the kernels)``.

        Raises
        ------
        ModelError
            When the padding mode is not zeros, or all weights are 0.
        """
        if conv.padding_mode != "zeros":
            raise ModelError(
                f"padding mode must be zeros, but it is {conv.padding_mode}",
                hint="build the convolution with zero padding",
            )
        weight = conv.weight.detach()
        rms = weight.square().mean().sqrt()
        if not rms > 0:
            raise ModelError(
                f"the spread is set from the rms of the kernels, which must be above 0, "
                f"but it is {rms.item():g} for weights of shape {tuple(weight.shape)}",
                hint="initialise the layer before converting it",
            )
        cap = settings.max_relative_std
        posterior = MeanFieldGaussian(
            weight,
            (settings.relative_std * rms).log().item(),
            max_log_std=None if cap is None else (cap * rms).log().item(),
        )
        posterior.requires_grad_(conv.weight.requires_grad)
        geometry = ConvGeometry(
            kind=type(conv),
            stride=tuple(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
        )
        twin = cls(posterior, bias=conv.bias, geometry=geometry, estimator=settings.estimator)
        if twin.bias is not None and conv.bias is not None:
            twin.bias.requires_grad_(conv.bias.requires_grad)
        return twin.train(conv.training)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Return one sample of the weights, (out, in, *k)."""
        return self.posterior.rsample(generator)

    def to_conv(self) -> nn.Conv2d | nn.Conv3d:
        """Return a plain convolution whose weights are the posterior means, or the held sample."""
        held = self.held_weight
        mean, geometry = self.posterior.mean if held is None else held, self.geometry
        # On the meta device no initial weights are drawn: torch's global generator stays as it is.
        conv = geometry.kind(
            in_channels=mean.shape[1] * geometry.groups,
            out_channels=mean.shape[0],
            kernel_size=tuple(mean.shape[2:]),  # pyright: ignore[reportArgumentType]
            stride=geometry.stride,  # pyright: ignore[reportArgumentType]
            padding=geometry.padding,  # pyright: ignore[reportArgumentType]
            dilation=geometry.dilation,  # pyright: ignore[reportArgumentType]
            groups=geometry.groups,
            bias=self.bias is not None,
            device="meta",
        )
        conv.weight = nn.Parameter(mean.detach().clone(), requires_grad=mean.requires_grad)
        if self.bias is not None:
            bias = self.bias
            conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return conv.train(self.training)

    def forward(self, image: Tensor) -> Tensor:
        """Return the convolved batch, ``(b, in, *s) -> (b, out, *s')``."""
        if self.held_weight is not None:
            return self._convolve(image, self.held_weight, self.bias)
        if not self.training:
            return self._convolve(image, self.posterior.mean, self.bias)
        if self.estimator == "weight":
            return self._convolve(image, self.posterior.rsample(self.generator), self.bias)
        mean = self._convolve(image, self.posterior.mean, self.bias)
        squared_std = (2.0 * self.posterior.capped_log_std).exp()
        # image * image, not image ** 2: autocast would raise the power to float32.
        variance = self._convolve(image * image, squared_std, None)
        std = variance.clamp_min(VARIANCE_FLOOR).sqrt()
        return mean + std * _noise_like(mean, self.generator)

    def _convolve(self, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._arithmetic(image, weight, bias, self.geometry)

    def extra_repr(self) -> str:
        """Return the shape and the estimator, for ``print(network)``."""
        return f"{tuple(self.posterior.mean.shape)}, estimator={self.estimator}"


def _noise_like(image: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal noise in the memory format of ``image``, so that no copy is made."""
    device = image.device if generator is None else generator.device
    noise = torch.empty_like(image, device=device, requires_grad=False)
    return noise.normal_(generator=generator).to(image.device)
