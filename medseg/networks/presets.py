"""Numbers that make a U-Net, by name."""

from medseg.networks.unet import UNetSettings


def unet_short_3d(in_channels: int, out_channels: int) -> UNetSettings:
    """Return the small residual network: widths 16-32-32-64, additive skips, no bias anywhere.

    Without biases the logits do not change when the image is multiplied by a positive number. One
    convolution per level on the way up (three on the whole full-resolution level) makes a step a
    third shorter than two would.

    References
    ----------
    Kuzina, Egorov and Burnaev 2019, "Bayesian generative models for knowledge transfer in MRI
    semantic segmentation problems", for the kind of network; Isensee et al. 2024, "nnU-Net
    revisited", for residual encoders with lighter decoders.
    """
    return UNetSettings(
        dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        widths=(16, 32, 32, 64),
        residual=True,
        skip="add",
        encoder_convs=2,
        decoder_convs=1,
        upsampling="nearest",
        bias=False,
        activation="relu",
    )


def unet_3d(in_channels: int, out_channels: int) -> UNetSettings:
    """Return the plain network that nnU-Net plans for whole brains: 32-320, six levels.

    References
    ----------
    Isensee et al. 2021, "nnU-Net", supplementary note 2.
    """
    return UNetSettings(
        dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        widths=(32, 64, 128, 256, 320, 320),
        residual=False,
        skip="concat",
        upsampling="transposed",
        bias=True,
        activation="leaky_relu",
    )


def unet_2d(in_channels: int, out_channels: int) -> UNetSettings:
    """Return a network of the same plan for axial slices: 32-256, five levels."""
    return UNetSettings(
        dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        widths=(32, 64, 128, 256, 256),
        residual=False,
        skip="concat",
        upsampling="transposed",
        bias=True,
        activation="leaky_relu",
    )
