"""A convolutional autoencoder, for features without labels; only its encoder is kept."""

from __future__ import annotations

from torch import Tensor, nn

from .conv_stack import ConvStack, StackSpec

# 1.1 kMAC a pixel of an RGB image, a field of 22 pixels, one code of 24 numbers for each 8 x 8 pixels.
ENCODER = "4/2:16 4/2:32 4/2:48 1:24"


class Autoencoder(nn.Module):
    """An encoder of valid, centred convolutions, and a decoder that reconstructs its cells.

    Parameters
    ----------
    in_channels : int
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.encoder = ConvStack(StackSpec.parse(in_channels, ENCODER), batch_norm=True)
        code = self.encoder.spec.stages[-1].channels
        self.decoder = nn.Sequential(
            nn.Conv2d(code, 64, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 48, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(48, 24, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(24, in_channels, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction (n, c, 8 h, 8 w) of the h x w cells under the input's centre."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]
