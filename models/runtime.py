"""Device and precision of nets, and conversion of uint8 pixels to their input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .precision import Precision
from .quantized import can_quantize

# glibc returns large freed blocks to the system and requests them again with every batch: a page fault for each 4 KiB
# of activations, which took longer than the convolutions. Allocating and freeing a block just under 32 MiB makes it
# keep smaller ones (see M_MMAP_THRESHOLD in mallopt(3)); the block is not touched, so it costs nothing.
_BALLAST = 31 << 20

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Device and number format of all forward passes of one analysis.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        float32 or bfloat16.
    integers : bool
        Whether scans of large images may compute in 8-bit integers.
    """

    device: torch.device
    dtype: torch.dtype
    integers: bool = False

    @classmethod
    def choose(cls, device: str | None = None, precision: Precision = "auto") -> Runtime:
        """Pick a device and a number format.

        Parameters
        ----------
        device : str, optional
            A torch device; by default CUDA if available, else Apple's MPS, else the CPU.
        precision : {"auto", "fp32", "bf16"}
            "auto" takes bfloat16 if the hardware multiplies it natively, else float32; and on x86 processors 8-bit
            integers for scans of large images.

        Raises
        ------
        ValueError
            If the device or the precision is unknown or not available.
        """
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
        try:
            place = torch.device(device or _default_device())
            torch.empty(_BALLAST if place.type == "cpu" else 1, dtype=torch.uint8, device=place)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used here ({error}); try device='cpu'") from error
        native = _native_bf16(place)
        low = precision == "bf16" or (precision == "auto" and native)
        integers = precision == "auto" and place.type == "cpu" and can_quantize()
        return cls(place, torch.bfloat16 if low else torch.float32, integers)

    @property
    def name(self) -> str:
        """Device and number format, such as ``"cpu bf16"``."""
        return f"{self.device} {'bf16' if self.dtype == torch.bfloat16 else 'fp32'}"

    def place(self, net: Net) -> Net:
        """A copy of the net on this device, in this number format; the net itself is unchanged."""
        return copy.deepcopy(net).to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]

    def pixels(self, pixels: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]) -> Tensor:
        """Normalise an (n, h, w, c) uint8 batch to a net's input, an (n, c, h, w) tensor in channels-last layout."""
        if self.device.type == "cpu":
            return self._looked_up(pixels, mean, std)
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        scale = torch.from_numpy(1.0 / (255.0 * std)).to(self.device)[:, None, None]
        shift = torch.from_numpy(mean / std).to(self.device)[:, None, None]
        return (x.float() * scale - shift).to(self.dtype)

    def _looked_up(self, pixels: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]) -> Tensor:
        """The same by a lookup table of the 256 values, in one pass without a temporary array."""
        values = np.arange(256, dtype=np.float32)[:, None] * (1.0 / (255.0 * std)) - mean / std
        # OpenCV has no bfloat16: its bits are handled as int16.
        table = (
            torch.from_numpy(values).to(self.dtype).view(torch.int16 if self.dtype == torch.bfloat16 else torch.float32)
        )
        n, height, width, channels = pixels.shape
        found = cv2.LUT(pixels.reshape(n * height, width, channels), table.numpy()[None])
        x = torch.from_numpy(found).view(self.dtype)
        return x.view(n, height, width, channels).permute(0, 3, 1, 2)


def in_double(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementary function to float32 numbers so that rounding does not depend on the position in the tensor.

    On CPUs, whole vectors and the remainder at the end go through different code, which differs in the last bit.
    """
    return function(x.double()).float() if x.device.type == "cpu" else function(x)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without AMX or AVX512-BF16 bfloat16 is emulated, slower than float32. The check has no public name yet.
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and check is not None and bool(check())
