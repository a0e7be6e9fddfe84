"""A case in, and masks, probabilities, uncertainty and volumes on its own grid out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data.regions import RegionSettings, decode
from medseg.geometry import Grid
from medseg.inference.lesions import Lesion, PackedMasks, find_lesions
from medseg.inference.model import Model
from medseg.inference.posterior import (
    VolumeInterval,
    named_channels,
    sample_probabilities,
)
from medseg.inference.settings import PredictSettings
from medseg.inference.uncertainty import RunningStatistics
from medseg.networks.precision import resolve_device
from medseg.preprocess.prepare import PreparedCase, prepare
from medseg.scan import Case


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
    probability : Tensor, shape (n, x, y, z)
        Mean over samples; 0 outside what the network saw.
    mask : Tensor, shape (n, x, y, z), bool
    entropy_nats, mutual_information_nats, std : Tensor, shape (n, x, y, z)
        Computed on the network's grid and brought here by linear interpolation.
    volumes_ml : ndarray, shape (K, n)
        Volume of each region in each sample.
    lesions : tuple of Lesion
        Of all regions, the largest of each first.
    """

    identifier: str
    subject: str
    grid: Grid
    regions: tuple[str, ...]
    definition: tuple[tuple[int, ...], ...]
    probability: Tensor
    mask: Tensor
    entropy_nats: Tensor
    mutual_information_nats: Tensor
    std: Tensor
    volumes_ml: NDArray[np.float64]
    lesions: tuple[Lesion, ...]

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
    """Return the prediction for a case that is prepared already; see :func:`predict_case`.

    Notes
    -----
    Maps are kept as running moments, masks of samples at one bit a voxel, so memory hardly grows
    with the number of samples. Each sample's mask is decided on the case's own grid: its volumes,
    the mask's and the lesions' are of one kind.
    """
    chosen, regions = settings or PredictSettings(), model.spec.regions
    network = model.network.to(resolve_device(chosen.device))
    shape = prepared.source_grid.shape
    statistics, samples = RunningStatistics(), [PackedMasks(shape) for _ in regions.names]
    for sample in sample_probabilities(network, prepared.image, head=model.head, settings=chosen):
        statistics.add(sample)
        masks = _decide(_to_source(prepared, sample, regions), regions, chosen.threshold)
        for kept, mask in zip(samples, masks, strict=True):
            kept.add(mask)
    result = statistics.result()
    mean = _to_source(prepared, result.probability, regions)
    named = named_channels(result, regions)
    mask = _decide(mean, regions, chosen.threshold)
    std = prepared.to_source(named.std, mode="linear")
    lesions = [
        lesion
        for index, name in enumerate(regions.names)
        for lesion in find_lesions(
            mask[index],
            region=name,
            grid=prepared.source_grid,
            samples=samples[index],
            std=std[index],
            settings=chosen.lesions,
        )
    ]
    information = named.mutual_information_nats
    return Prediction(
        identifier=prepared.identifier,
        subject=prepared.subject,
        grid=prepared.source_grid,
        regions=tuple(regions.names),
        definition=tuple(tuple(model.spec.region_definition[name]) for name in regions.names),
        probability=mean[-len(regions.names) :],
        mask=mask,
        entropy_nats=prepared.to_source(named.entropy_nats, mode="linear"),
        mutual_information_nats=prepared.to_source(information, mode="linear"),
        std=std,
        volumes_ml=_volumes_ml(samples, prepared.source_grid),
        lesions=tuple(lesions),
    )


def _to_source(prepared: PreparedCase, probability: Tensor, regions: RegionSettings) -> Tensor:
    on_source = prepared.to_source(probability, mode="linear").clamp(0.0, 1.0)
    if regions.mode == "classes":
        # Outside what the network saw all channels are 0, and that is background.
        on_source[0] = (1.0 - on_source[1:].sum(0)).clamp(0.0, 1.0)
    return on_source


def _decide(probability: Tensor, regions: RegionSettings, threshold: float) -> Tensor:
    masks = decode(probability, settings=regions, threshold=threshold)
    return torch.stack([masks[name] for name in regions.names])


def _volumes_ml(samples: list[PackedMasks], grid: Grid) -> NDArray[np.float64]:
    voxels = [[np.count_nonzero(kept[k]) for kept in samples] for k in range(len(samples[0]))]
    return np.array(voxels, dtype=np.float64) * grid.voxel_volume_mm3 / 1000.0
