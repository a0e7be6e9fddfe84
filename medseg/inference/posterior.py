"""Samples of the weights, each seen over a whole volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from medseg.data.regions import RegionSettings, decode
from medseg.inference.engines.torch_fast import PRECISIONS, TorchEngine
from medseg.inference.ensemble import members_of
from medseg.inference.focused import FocusedPosterior
from medseg.inference.intensity_prior import IntensityPrior
from medseg.inference.predictor import OVERLAPS, Engine, SlidingWindow, Temperature
from medseg.inference.refinement import held_against
from medseg.inference.settings import PredictSettings
from medseg.inference.uncertainty import RunningStatistics, SampleStatistics, statistics_of_share
from medseg.networks.precision import resolve_precision
from medseg.networks.unet import UNet
from medseg.preprocess.lattice import bounding_box
from medseg.seeding import torch_generator
from medseg.shapes import Image
from medseg.variational.sampling import random_layers, sampled_weights


@dataclass(frozen=True)
class Head:
    """How to read the logits of a network.

    Parameters
    ----------
    regions : RegionSettings
        Names, and whether they are overlapping regions or exclusive classes.
    dims : 2 or 3
        Spatial axes the network sees; 2 means axial slices.
    temperature : float or tuple of float
        Logits are divided by it; one for each channel, or one for all.
    has_share : bool
        Of a distilled network: after the probabilities of the regions come, one for each, the
        shares of variance between the samples that it learned from.
    window : tuple of int, optional
        Voxels that the network saw at once while it was trained. Instance normalisation counts
        what it sees: shown more, a network answers otherwise.
    intensities : IntensityPrior, optional
        What labelled scans look like; what the network says is then held against the scan's own
        intensities.
    """

    regions: RegionSettings
    dims: int = 3
    temperature: Temperature = 1.0
    has_share: bool = False
    window: tuple[int, ...] | None = None
    intensities: IntensityPrior | None = None

    def windowed(self, settings: PredictSettings) -> PredictSettings:
        """Return settings with the windows of the training where they name none."""
        asked = settings.window or settings.max_window_voxels or settings.windows == "largest"
        if self.window is None or asked:
            return settings
        overlap = min(OVERLAPS[settings.profile]) if settings.overlap is None else settings.overlap
        return replace(settings, window=self.window, overlap=overlap)


@dataclass(frozen=True)
class VolumeInterval:
    """A volume in ml: median and 5-95 % interval over posterior samples.

    The interval is what the samples spread over. It is no promise about the true volume unless it
    was calibrated on other cases.
    """

    low_ml: float
    median_ml: float
    high_ml: float

    @classmethod
    def of(cls, volumes_ml: np.ndarray) -> VolumeInterval:
        """Return the interval of the samples ``(K,)``, linearly interpolated between them."""
        low, median, high = np.percentile(volumes_ml, (5, 50, 95))
        return cls(float(low), float(median), float(high))


@dataclass(frozen=True, eq=False)
class PreparedPrediction:
    """A prediction on the grid that the network sees; regions in the order of ``names``.

    Parameters
    ----------
    names : tuple of str
        The n regions.
    statistics : SampleStatistics
        Maps of shape (n, x, y, z).
    mask : Tensor, shape (n, x, y, z), bool
        The decided regions, from the mean probability.
    sample_voxels : Tensor, shape (K, n), int64
        Voxels of each region in each sample.
    """

    names: tuple[str, ...]
    statistics: SampleStatistics
    mask: Tensor
    sample_voxels: Tensor

    def volume(self, name: str, *, voxel_volume_mm3: float) -> VolumeInterval:
        """Return median and 5-95 % interval over samples of a region's volume in ml."""
        voxels = self.sample_voxels[:, self.names.index(name)].numpy()
        return VolumeInterval.of(voxels * voxel_volume_mm3 / 1000.0)


def sample_count(network: nn.Module, settings: PredictSettings) -> int:
    """Return how many samples a network is worth: one for each member where no weight is random."""
    members = len(members_of(network))
    return max(settings.samples, members) if random_layers(network) else members


def sample_probabilities(
    network: nn.Module,
    image: Image,
    *,
    head: Head,
    settings: PredictSettings,
    engine: Engine | None = None,
) -> Iterator[Tensor]:
    """Yield the probabilities (n, x, y, z) of one posterior sample after the other.

    All windows of a volume see the same weights, so that a sample is one function. A deterministic
    network yields once. Samples go round the members of an ensemble, each at least once: sample k
    is of member k modulo their number, its weights drawn anew where they are random.

    Parameters
    ----------
    network : nn.Module
        Its mode (training or not) is as before when each volume is done.
    image : Tensor, shape (c, x, y, z)
    head : Head
    settings : PredictSettings
        With ``posterior`` "focused" the whole image is seen once, by the mean weights; what each
        sample changes is computed where these are uncertain.
    engine : callable, optional
        Computes faster what the network computes with its mean weights.
    """
    samplers = [
        _Sampler(member, image, head=head, settings=head.windowed(settings), engine=engine)
        for member in members_of(network)
    ]
    for index in range(sample_count(network, settings)):
        yield samplers[index % len(samplers)].sample(index)


class _Sampler:
    """Draws the samples of one network, and keeps what they share."""

    def __init__(
        self,
        network: nn.Module,
        image: Image,
        *,
        head: Head,
        settings: PredictSettings,
        engine: Engine | None,
    ) -> None:
        self._network, self._image, self._settings = network, image, settings
        self._head, self._engine = head, engine
        device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
        self._device = device
        self._windows = self._predictor(network)
        self._focused: FocusedPosterior | None = None

    def sample(self, index: int) -> Tensor:
        """Return the probabilities (n, x, y, z) of sample ``index`` of all."""
        network, settings = self._network, self._settings
        if not random_layers(network):
            return self._mean()
        generator = torch_generator(settings.seed, "posterior sample", index)
        if settings.posterior == "full":
            # Held for one volume only: the caller may use the network meanwhile.
            with torch.no_grad(), sampled_weights(network, generator):
                return self._seen(self._image)
        if self._focused is None:
            self._focused = FocusedPosterior(
                network,
                self._image,
                mean=self._mean(),
                predict=self._seen,
                mode=self._head.regions.mode,
            )
        return self._focused.sample(generator)

    def _mean(self) -> Tensor:
        predictor = self._predictor(self._engine or self._network)
        return _evaluated(self._network, predictor, self._image)

    def _seen(self, image: Image) -> Tensor:
        """See an image with the weights of the moment, as fast as torch can."""
        network, windows = self._network, self._windows
        if self._settings.engine != "eager" and isinstance(network, UNet):
            # Windows keep what they learned of the memory; only the weights are others.
            precision = PRECISIONS[resolve_precision(self._settings.precision, self._device)]
            windows.network = TorchEngine(network, precision=precision, device=self._device)
            windows.dtype = torch.float32
        return _evaluated(network, windows, image)

    def _predictor(self, what: Engine) -> SlidingWindow:
        return SlidingWindow(
            what,
            mode=self._head.regions.mode,
            dims=self._head.dims,
            temperature=self._head.temperature,
            device=self._device,
            dtype=resolve_precision(self._settings.precision, self._device),
            settings=self._settings,
        )


def _evaluated(network: nn.Module, predictor: SlidingWindow, image: Image) -> Tensor:
    was_training = network.training
    network.eval()
    try:
        return predictor(image)
    finally:
        network.train(was_training)


def named_channels(statistics: SampleStatistics, regions: RegionSettings) -> SampleStatistics:
    """Return the statistics of the named channels only: a softmax head's background is left out."""
    first = 1 if regions.mode == "classes" else 0
    return SampleStatistics(
        samples=statistics.samples,
        probability=statistics.probability[first:],
        expected_entropy_nats=statistics.expected_entropy_nats[first:],
        variance=statistics.variance[first:],
    )


def predict_prepared(
    network: nn.Module,
    image: Image,
    *,
    head: Head,
    settings: PredictSettings | None = None,
    inside: Tensor | None = None,
) -> PreparedPrediction:
    """Return what the posterior says of an image, on the image's own grid.

    Parameters
    ----------
    network : nn.Module
        Deterministic or variational; stays on its device and in its mode.
    image : Tensor, shape (c, x, y, z)
        A prepared case's image. The network is shown the box of what is not 0.
    head : Head
        How to read the logits.
    settings : PredictSettings, optional
    inside : Tensor, shape (x, y, z), bool, optional
        Where a mask may be, such as the brain: what lies outside counts in no mask and no volume.
        Maps are what the network says everywhere.

    Returns
    -------
    PreparedPrediction

    Notes
    -----
    Memory does not depend on the number of samples, but where intensities are looked at.
    """
    chosen = settings or PredictSettings()
    statistics, counts = RunningStatistics(), []
    share, box = None, seen_box(image)
    seen = image[(slice(None), *box)].contiguous()
    drawn = (
        laid_back(sample, box, shape=image.shape[1:], mode=head.regions.mode)
        for sample in sample_probabilities(network, seen, head=head, settings=chosen)
    )
    looks = head.intensities if chosen.refine else None
    for probabilities in held_against(drawn, image, inside, head.regions.names, looks):
        if head.has_share:
            probabilities, share = probabilities.chunk(2)
        statistics.add(probabilities)
        counts.append(_masks(probabilities, head, chosen, inside).flatten(1).sum(1))
    result = statistics.result()
    if share is not None:
        result = statistics_of_share(result.probability, share)
    return PreparedPrediction(
        names=tuple(head.regions.names),
        statistics=named_channels(result, head.regions),
        mask=_masks(result.probability, head, chosen, inside),
        sample_voxels=torch.stack(counts).cpu(),
    )


def seen_box(image: Image) -> tuple[slice, ...]:
    """Return the box of what is not 0 in any channel; the whole of an image that is 0 throughout.

    A margin of nothing changes the statistics that normalisation sees.
    """
    if not bool(image.any()):
        return tuple(slice(0, length) for length in image.shape[1:])
    return tuple(map(slice, *bounding_box(image.ne(0).any(dim=0))))


def laid_back(sample: Tensor, box: tuple[slice, ...], *, shape: Sequence[int], mode: str) -> Tensor:
    """Return probabilities (n, *s) of a box on the grid it was cut from, background around it."""
    if tuple(sample.shape[1:]) == tuple(shape):
        return sample
    whole = sample.new_zeros((len(sample), *shape))
    if mode == "classes":
        whole[0] = 1.0
    whole[(slice(None), *box)] = sample
    return whole


def _masks(
    probabilities: Tensor, head: Head, settings: PredictSettings, inside: Tensor | None
) -> Tensor:
    """Return the decided masks (n, x, y, z) of the regions, in their order."""
    found = decode(probabilities, settings=head.regions, threshold=settings.threshold)
    masks = torch.stack([found[name] for name in head.regions.names])
    return masks if inside is None else masks & inside.to(masks.device)
