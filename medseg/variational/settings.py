"""How a network becomes variational."""

from typing import Literal

from pydantic import Field, model_validator

from medseg.settings import settings


@settings
class VariationalSettings:
    """Start, cap and estimator of the weight posterior.

    Standard deviations are relative to the root mean square of the layer's own kernels: noise as
    large as the kernels would erase what they know, whatever their unit.
    """

    #: Standard deviation at the start, as a share of the rms of the layer's kernels.
    relative_std: float = Field(default=0.1, gt=0.0, le=10.0)
    #: Largest standard deviation, in the same unit; None leaves it free.
    max_relative_std: float | None = Field(default=0.3, gt=0.0)
    #: "local" draws activations by local reparameterisation, "weight" draws the weights.
    estimator: Literal["local", "weight"] = "local"

    @model_validator(mode="after")
    def _cap_above_start(self) -> "VariationalSettings":
        if self.max_relative_std is not None and self.max_relative_std < self.relative_std:
            raise ValueError(
                f"max_relative_std must be at least relative_std, but they are "
                f"{self.max_relative_std} and {self.relative_std}"
            )
        return self
