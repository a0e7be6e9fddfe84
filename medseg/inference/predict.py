"""A case in, and masks, probabilities, uncertainty and volumes on its own grid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.regions import RegionSettings
from medseg.errors import ModelError
from medseg.geometry import Grid
from medseg.inference.lesions import Lesion, PackedMasks, find_lesions
from medseg.inference.model import Model
from medseg.inference.plan import plan_prediction, predict_image
from medseg.inference.posterior import VolumeInterval
from medseg.inference.refinement import held_against
from medseg.inference.settings import PredictSettings
from medseg.inference.uncertainty import RunningStatistics, SampleStatistics, statistics_of_share
from medseg.preprocess.prepare import PreparedCase, prepare
from medseg.preprocess.resample import resample
from medseg.scan import Case

#: Of intensities inside the brain, and voxels that they are taken from.
_QUANTILES, _MOST_LOOKED_AT = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98), 100_000


@dataclass(frozen=True, eq=False)
class SourceMaps:
    """Maps, one per region, that come to a case's own grid when they are asked for, one at a time.

    A grid of the scanner has many times the voxels of the brain's box at the network's spacing, so
    that all maps at once would take more memory than all the rest.

    Parameters
    ----------
    values : Tensor, shape (n, x', y', z')
        On the network's grid, in [0, 1].
    grid, source_grid : Grid
        Where the values lie, and where they are wanted.
    """

    values: Tensor
    grid: Grid
    source_grid: Grid

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        """Return one map, shape (x, y, z), by linear interpolation; 0 outside."""
        values = self.values[index][None]
        if not bool(values.any()):
            # One zero that is seen everywhere.
            return torch.zeros(()).expand(self.source_grid.shape)
        # Rounding may step over the ends.
        return resample(values, self.grid, self.source_grid)[0].clamp_(0.0, 1.0)

    def stacked(self) -> Tensor:
        """Return all maps at once, shape (n, x, y, z)."""
        return torch.stack([self[index] for index in range(len(self))])


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one case, on the case's own grid; regions in the order of ``regions``.

    Parameters
    ----------
    identifier, subject : str
    grid : Grid
        Of the case.
    regions : tuple of str
        The n regions.
    definition : tuple of tuple of int
        Labels of the training data behind each region.
    probability : SourceMaps of n regions
        Mean over samples; 0 outside what the network saw.
    mask : Tensor, shape (n, x, y, z), bool
    entropy_nats, mutual_information_nats, std : SourceMaps of n regions
        Computed on the network's grid.
    volumes_ml : ndarray, shape (K, n)
        Volume of each region in each sample.
    lesions : tuple of Lesion
        Of all regions, the largest of each first.
    intensities : ndarray, shape (c * q,)
        Quantiles of each prepared channel inside the brain; 0 for one that is missing.
    settings : PredictSettings
        That it was made with.
    computed : mapping
        Engine, precision and windows: what became of the settings.
    """

    identifier: str
    subject: str
    grid: Grid
    regions: tuple[str, ...]
    definition: tuple[tuple[int, ...], ...]
    probability: SourceMaps
    mask: Tensor
    entropy_nats: SourceMaps
    mutual_information_nats: SourceMaps
    std: SourceMaps
    volumes_ml: NDArray[np.float64]
    lesions: tuple[Lesion, ...]
    intensities: NDArray[np.float64]
    settings: PredictSettings
    computed: Mapping[str, Any]

    @property
    def samples(self) -> int:
        """Posterior samples, K; 1 for a deterministic network."""
        return self.volumes_ml.shape[0]

    def volume_ml(self, region: str) -> float:
        """Return the volume in ml of a region's mask."""
        voxels = int(self.mask[self.regions.index(region)].sum())
        return voxels * self.grid.voxel_volume_mm3 / 1000.0

    def volume_interval(self, region: str) -> VolumeInterval:
        """Return median and 5-95 % interval over samples of a region's volume."""
        return VolumeInterval.of(self.volumes_ml[:, self.regions.index(region)])


def predict_case(
    model: Model, case: Case, *, settings: PredictSettings | None = None
) -> Prediction:
    """Return a model's prediction for a case.

    Parameters
    ----------
    model : Model
        Moved to the device of the settings.
    case : Case
        With the modalities of the model.
    settings : PredictSettings, optional

    Raises
    ------
    ScanError
        A modality is missing that the model cannot do without, or no brain was found.
    ConfigError, ModelError
        Settings that do not fit the model or this machine.
    """
    return predict_prepared_case(model, prepare_for(model, case), settings=settings)


def prepare_for(model: Model, case: Case) -> PreparedCase:
    """Return a case as the model wants it: its channels, spacing, orientation and intensities."""
    spec = model.spec
    return prepare(
        case,
        channels=spec.channels,
        settings=spec.preprocess,
        allow_missing=spec.allow_missing,
    )


def predict_prepared_case(
    model: Model, prepared: PreparedCase, *, settings: PredictSettings | None = None
) -> Prediction:
    """Return the prediction for a case that is prepared already; see :func:`predict_case`."""
    return observe(model, prepared, settings=settings).conclude()


@dataclass(frozen=True, eq=False)
class Observation:
    """What the network said of one case, before anything is made of it on the case's own grid.

    Concluding needs no network, so that a batch can do it while the network is at the next case.

    Parameters
    ----------
    identifier, subject : str
    grid, source_grid : Grid
        What the network saw, and the case's own.
    regions : RegionSettings
    definition : tuple of tuple of int
        As in :class:`Prediction`.
    settings : PredictSettings
    statistics : sequence of SampleStatistics
        One for each channel of the head.
    samples : tuple of PackedMasks
        Of each region, in every sample but the last.
    last : Tensor, shape (channels, x', y', z')
        Probabilities of the last sample, on the network's grid.
    intensities : ndarray
        As in :class:`Prediction`.
    computed : mapping
        Engine, precision and windows, for the record.
    """

    identifier: str
    subject: str
    grid: Grid
    source_grid: Grid
    regions: RegionSettings
    definition: tuple[tuple[int, ...], ...]
    settings: PredictSettings
    statistics: Sequence[SampleStatistics]
    samples: tuple[PackedMasks, ...]
    last: Tensor
    intensities: NDArray[np.float64]
    computed: Mapping[str, Any]

    def conclude(self) -> Prediction:
        """Return masks, maps, volumes and lesions on the case's own grid; to be called once."""
        grids = self.grid, self.source_grid
        _keep_decided(self.samples, SourceMaps(self.last, *grids), self.regions, self.settings)
        mean = SourceMaps(torch.stack([one.probability for one in self.statistics]), *grids)
        if len(self.samples[0]) == 1:
            # The mean of one sample is that sample.
            mask = torch.stack([torch.from_numpy(kept[0]) for kept in self.samples])
        else:
            mask = torch.stack([*_decided(mean, self.regions, self.settings.threshold)])
        # A softmax head's background is left out.
        named = self.statistics[-len(self.regions.names) :]
        std = SourceMaps(torch.stack([one.std for one in named]), *grids)
        lesions = [
            lesion
            for index, name in enumerate(self.regions.names)
            for lesion in find_lesions(
                mask[index],
                region=name,
                grid=self.source_grid,
                samples=self.samples[index],
                std=std[index],
                settings=self.settings.lesions,
            )
        ]
        return Prediction(
            identifier=self.identifier,
            subject=self.subject,
            grid=self.source_grid,
            regions=tuple(self.regions.names),
            definition=self.definition,
            probability=SourceMaps(mean.values[-len(named) :], *grids),
            mask=mask,
            entropy_nats=SourceMaps(torch.stack([one.entropy_nats for one in named]), *grids),
            mutual_information_nats=SourceMaps(
                torch.stack([one.mutual_information_nats for one in named]), *grids
            ),
            std=std,
            volumes_ml=_volumes_ml(self.samples, self.source_grid),
            lesions=tuple(lesions),
            intensities=self.intensities,
            settings=self.settings,
            computed=self.computed,
        )


def observe(
    model: Model, prepared: PreparedCase, *, settings: PredictSettings | None = None
) -> Observation:
    """Run the network over a prepared case; see :func:`predict_case`.

    Notes
    -----
    Maps are kept as running moments, masks of samples at one bit a voxel, so memory hardly grows
    with the number of samples, unless intensities are looked at. Each sample's mask is decided on
    the case's own grid: its volumes, the mask's and the lesions' are of one kind.
    """
    chosen, regions = settings or PredictSettings(), model.spec.regions
    if not any(model.spec.region_definition.values()):
        raise ModelError(
            f"A model that predicts was trained on masks, but this one, {model.spec.method!r}, "
            "learned without any.",
            hint="Fine-tune it on scans with masks: medseg finetune --method pr --source MODEL.",
        )
    grids, shape = (prepared.grid, prepared.source_grid), prepared.source_grid.shape
    samples = tuple(PackedMasks(shape) for _ in regions.names)
    # One for each channel, so that what an update takes is as large as one channel.
    running = [RunningStatistics() for _ in range(regions.channels)]
    last = share = None
    plan = plan_prediction(model, prepared.image, settings=chosen, source_shape=shape)
    drawn = predict_image(model, prepared.image, plan=plan)
    looks = model.spec.intensities if chosen.refine else None
    for sample in held_against(drawn, prepared.image, prepared.brain, regions.names, looks):
        if last is not None:
            _keep_decided(samples, SourceMaps(last, *grids), regions, chosen)
        if model.spec.has_share:
            sample, share = sample.chunk(2)
        for moments, channel in zip(running, sample, strict=True):
            moments.add(channel)
        last = sample
    if last is None:
        raise ModelError("A model gives at least one sample, but it gave none.")
    return Observation(
        identifier=prepared.identifier,
        subject=prepared.subject,
        grid=prepared.grid,
        source_grid=prepared.source_grid,
        regions=regions,
        definition=tuple(tuple(model.spec.region_definition[name]) for name in regions.names),
        settings=chosen,
        statistics=[moments.result() for moments in running]
        if share is None
        else [statistics_of_share(*one) for one in zip(last, share, strict=True)],
        samples=samples,
        last=last,
        intensities=_intensities(prepared),
        computed=plan.describe(),
    )


def _intensities(prepared: PreparedCase) -> NDArray[np.float64]:
    """Return quantiles of each channel inside the brain, one channel after the other."""
    inside = prepared.image[:, prepared.brain].numpy()
    some = inside[:, :: max(1, inside.shape[1] // _MOST_LOOKED_AT)].astype(np.float64)
    return np.quantile(some, _QUANTILES, axis=1).T.ravel()


def _decided(maps: SourceMaps, regions: RegionSettings, threshold: float) -> Iterator[Tensor]:
    """Yield the mask (x, y, z) of each region, one map at a time.

    The same as ``decode`` of all maps at once.

    Parameters
    ----------
    maps : SourceMaps
        Probabilities of all channels; in mode "classes" the background first.
    """
    if regions.mode == "regions":
        yield from (maps[index] > threshold for index in range(len(maps)))
        return
    most = maps[1].clone()
    winner, rest = torch.ones(most.shape, dtype=torch.uint8), 1.0 - most
    for index in range(2, len(maps)):
        probability = maps[index]
        winner[probability > most] = index
        torch.maximum(most, probability, out=most)
        rest -= probability
    # Not the background's own map: outside what the network saw all are 0, and that is background.
    winner[rest >= most] = 0
    yield from (winner == index for index in range(1, len(maps)))


def _keep_decided(
    samples: Sequence[PackedMasks],
    sample: SourceMaps,
    regions: RegionSettings,
    settings: PredictSettings,
) -> None:
    for kept, mask in zip(samples, _decided(sample, regions, settings.threshold), strict=True):
        kept.add(mask)


def _volumes_ml(samples: Sequence[PackedMasks], grid: Grid) -> NDArray[np.float64]:
    voxels = [[np.count_nonzero(kept[k]) for kept in samples] for k in range(len(samples[0]))]
    return np.array(voxels, dtype=np.float64) * grid.voxel_volume_mm3 / 1000.0
