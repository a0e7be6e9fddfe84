"""Principal components, as a code and as a density."""

import torch
from pydantic import Field
from torch import Tensor

from medseg.generative.base import GenerativeBase
from medseg.generative.fitting import FitRecord
from medseg.generative.model import Codes, Conditions, Items, PerItem
from medseg.generative.noise import LOG_TWO_PI, draw_normal, draw_seed
from medseg.settings import settings

# Least variance of any direction, over the mean variance: below it a density has no meaning.
_LEAST_VARIANCE = 1e-6


@settings
class PcaSettings:
    """How many principal components are kept."""

    #: Components, at most as many as an item has numbers.
    latent: int = Field(default=6, ge=1)


class Pca(GenerativeBase):
    """Items as their mean and a few orthogonal directions of greatest variance.

    ``x ~ mean + sum_i z_i e_i`` with the ``e_i`` that leave the least squared error. There is no
    density over the rest, hence neither bound nor sample: see :class:`Ppca`.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : PcaSettings
        Number of components.
    """

    kind = "pca"
    settings_type = PcaSettings
    provides = frozenset({"encode", "decode", "reconstruct"})
    settings: PcaSettings
    mean: Tensor
    components: Tensor
    variances: Tensor
    noise: Tensor

    def __init__(self, event_shape: tuple[int, ...], settings: PcaSettings) -> None:
        super().__init__(event_shape, settings)
        kept = min(settings.latent, self.size)
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("components", torch.eye(self.size)[:kept].clone())
        self.register_buffer("variances", torch.ones(kept))
        self.register_buffer("noise", torch.ones(()))

    @property
    def fewest_items(self) -> int:
        """One more than there are components."""
        return len(self.components) + 1

    def _fit(
        self, items: Tensor, *, generator: torch.Generator, condition: Tensor | None
    ) -> FitRecord:
        # Here: scikit-learn takes a second to import, and a stored model does without it.
        from sklearn.decomposition import PCA

        rows = items.flatten(1).double()
        kept = len(self.components)
        found = PCA(n_components=kept, random_state=draw_seed(generator)).fit(rows.cpu().numpy())
        floor = _LEAST_VARIANCE * float(rows.var(0).mean())
        noise = max(float(found.noise_variance_), floor)
        self.mean.copy_(torch.from_numpy(found.mean_))
        self.components.copy_(torch.from_numpy(found.components_))
        self.variances.copy_(torch.from_numpy(found.explained_variance_).clamp(min=noise))
        self.noise.fill_(noise)
        with torch.no_grad():
            return FitRecord(0, float(self._objective(items)), None)

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the coordinates along the components, (m, latent), in the units of the items."""
        return (self.vectors(items, condition) - self.mean) @ self.components.T

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return ``mean + sum_i z_i e_i``, (m, *event_shape)."""
        self.check_codes(codes, len(self.components))
        self.check_condition(len(codes), condition)
        return (self.mean + codes @ self.components).reshape(len(codes), *self.event_shape)

    def _objective(self, items: Tensor) -> Tensor:
        # Squared error in nats: that of a Gaussian with deviation 1, without its constant.
        return -0.5 * (items - Pca.reconstruct(self, items)).square().flatten(1).sum(1).mean()


class Ppca(Pca):
    """Probabilistic principal components: ``x ~ N(mean, W W' + s^2 I)``, fitted in closed form.

    The columns of W are the components, each as long as the root of the variance it has beyond
    ``s^2``; ``s^2`` is the mean variance of the directions left out.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one item.
    settings : PcaSettings
        Number of components.

    References
    ----------
    Tipping and Bishop (1999), Probabilistic principal component analysis, equations 7 and 8.
    """

    kind = "ppca"
    provides = frozenset({"sample", "bound", "energy", "encode", "decode", "reconstruct"})
    is_exact = True
    is_normalised = True

    def bound(
        self,
        items: Items,
        *,
        generator: torch.Generator | None = None,
        condition: Conditions | None = None,
    ) -> PerItem:
        """Return log p in nats, exactly, (m,)."""
        centred = self.vectors(items, condition) - self.mean
        codes = centred @ self.components.T
        rest = (centred - codes @ self.components).square().sum(1) / self.noise
        left = self.size - len(self.components)
        log_det = self.variances.log().sum() + left * self.noise.log()
        mahalanobis = (codes.square() / self.variances).sum(1) + rest
        return -0.5 * (mahalanobis + log_det + self.size * LOG_TWO_PI)

    @torch.no_grad()
    def sample(
        self, n: int, *, generator: torch.Generator, condition: Conditions | None = None
    ) -> Items:
        """Return ``n`` items: decoded normal codes, and noise."""
        shape = (n, len(self.components))
        codes = draw_normal(shape, like=self.mean, generator=generator)
        items = self.decode(codes, condition=condition)
        noise = draw_normal(tuple(items.shape), like=self.mean, generator=generator)
        return items + self.noise.sqrt() * noise

    def encode(self, items: Items, *, condition: Conditions | None = None) -> Codes:
        """Return the posterior mean of the code, (m, latent), whose prior is N(0, I)."""
        # W' (W W' + s^2 I)^-1, which is diagonal in the components.
        return super().encode(items, condition=condition) * self._lengths() / self.variances

    def decode(self, codes: Codes, *, condition: Conditions | None = None) -> Items:
        """Return ``mean + W z``, (m, *event_shape)."""
        self.check_codes(codes, len(self.components))
        return super().decode(codes * self._lengths(), condition=condition)

    def _lengths(self) -> Tensor:
        return (self.variances - self.noise).clamp(min=0).sqrt()

    def _objective(self, items: Tensor) -> Tensor:
        return self.bound(items).mean()
