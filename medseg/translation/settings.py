"""What is translated into what, and how a translator is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.data.training_set import PatchSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.settings import settings
from medseg.training.loop import TrainingSettings
from medseg.translation.adversary import Game

Method = Literal["pix2pix", "cyclegan", "super_resolution"]
_Width = Annotated[int, Field(ge=1)]


@settings
class TranslationSettings:
    """One translator: method, modalities, network and training.

    The weights of the losses are those of the papers; their sum is divided by the largest of them,
    which changes no step of Adam and lets one ``clip_norm`` fit all methods.
    """

    method: Method
    #: Modalities that go in. Super-resolution learns from all of them, one at a time.
    channels: tuple[str, ...] = Field(min_length=1)
    #: Modality that comes out; for ``cyclegan`` that of the other cohort. Not for
    #: ``super_resolution``.
    target: str | None = None
    #: Slices on each side that go in too (2.5D); 0 for single slices.
    neighbours: int = Field(default=1, ge=0, le=8)
    #: Channels per level of the generator's U-Net.
    widths: tuple[_Width, ...] = Field(default=(24, 48, 96), min_length=2)
    #: Channels of the discriminator's strided convolutions.
    discriminator_widths: tuple[_Width, ...] = Field(default=(32, 64), min_length=1)
    #: The discriminator's loss.
    game: Game = "least_squares"
    #: Weight of the discriminator's opinion; 0 does without a discriminator.
    adversarial_weight: float = Field(default=1.0, ge=0)
    #: Weight of ``|G(x) - y|`` (``pix2pix``).
    l1_weight: float = Field(default=100.0, gt=0)
    #: Weight of ``|F(G(x)) - x| + |G(F(y)) - y|`` (``cyclegan``).
    cycle_weight: float = Field(default=10.0, gt=0)
    #: Weight of ``|G(y) - y| + |F(x) - x|`` (``cyclegan``), where both sides have as many
    #: modalities; for looks that differ little, 5 in the paper.
    identity_weight: float = Field(default=0.0, ge=0)
    #: Thin slices per thick one (``super_resolution``).
    factor: int = Field(default=4, ge=2, le=16)
    #: Through-plane axis of the prepared training volumes (``super_resolution``).
    axis: Literal[0, 1, 2] = 2
    #: Chance of mirroring a patch left to right.
    flip: float = Field(default=0.5, ge=0, le=1)
    preprocess: PreprocessSettings = PreprocessSettings(spacing_mm=None)
    patch: PatchSettings = PatchSettings(size=(48, 48), batch_size=8, lesion_fraction=0.3)
    training: TrainingSettings = TrainingSettings(steps=1000, learning_rate=1e-3)
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "TranslationSettings":
        thick = self.method == "super_resolution"
        if thick != (self.target is None):
            raise ValueError(
                f"target is {self.target!r}, but {self.method} "
                + ("makes the modality it is given" if thick else "needs a modality to make")
            )
        if self.method == "pix2pix" and self.target in self.channels:
            raise ValueError(
                f"target {self.target!r} must not be among the channels {list(self.channels)}"
            )
        if len(self.patch.size) != 2:
            raise ValueError(f"patch.size must have 2 numbers, but it is {self.patch.size}")
        if thick and (self.patch.size[0] % self.factor or self.patch.size[0] < 2 * self.factor):
            raise ValueError(
                f"patch.size[0] must be at least two times the factor {self.factor} and a multiple "
                f"of it, but it is {self.patch.size[0]}"
            )
        if self.preprocess.normalise != "zscore":
            raise ValueError(
                f"preprocess.normalise must be 'zscore', but it is {self.preprocess.normalise!r}"
            )
        return self
