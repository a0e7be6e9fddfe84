"""What a calibration can be asked for."""

from pydantic import Field

from medseg.settings import settings


@settings
class CalibrationSettings:
    """Coverage, and how much is looked at.

    Parameters
    ----------
    coverage : float
        Chance that a volume interval holds the true volume; outer masks miss, and inner masks hold
        falsely, an expected share of at most the rest to 1.
    review_share : float
        Share of usual cases that may be sent to a human, all signs of doubt together.
    volume_floor : float
        Least spread of the logarithm of a volume, see
        :func:`medseg.calibration.conformal.log_volume_spread`.
    voxels : int
        Most voxels of a case and stratum that the temperature is fitted to.
    doubtful : float
        Voxels whose mean probability is nearer to one half than this, or on the wrong side of it,
        are drawn apart from the others, so that few voxels tell much.
    """

    coverage: float = Field(default=0.9, gt=0, lt=1)
    review_share: float = Field(default=0.2, gt=0, lt=1)
    volume_floor: float = Field(default=0.2, gt=0)
    voxels: int = Field(default=20_000, ge=1)
    doubtful: float = Field(default=0.499, gt=0, lt=0.5)
