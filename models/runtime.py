"""Where and how nets run: device, precision, and uint8 pixels in, float32 arrays out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Precision = Literal["auto", "fp32", "bf16"]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Device and number format of all forward passes of one analysis.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
        float32 or bfloat16.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str | None = None, precision: Precision = "auto") -> Runtime:
        """Pick a device and a number format.

        Parameters
        ----------
        device : str, optional
            Anything torch understands; by default CUDA, then Apple's MPS, then the CPU.
        precision : {"auto", "fp32", "bf16"}
            "auto" takes bfloat16 where the hardware multiplies it natively, else float32.

        Raises
        ------
        ValueError
            If the device or the precision is unknown or not available.
        """
        if precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
        try:
            place = torch.device(device or _default_device())
            torch.empty(1, device=place)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used here ({error}); try device='cpu'") from error
        native = _native_bf16(place)
        low = precision == "bf16" or (precision == "auto" and native)
        return cls(place, torch.bfloat16 if low else torch.float32)

    @property
    def name(self) -> str:
        """Such as ``"cpu bf16"``."""
        return f"{self.device} {'bf16' if self.dtype == torch.bfloat16 else 'fp32'}"

    def place(self, net: Net) -> Net:
        """A copy of the net, ready to run here; the net itself keeps its place and full precision."""
        return copy.deepcopy(net).to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]

    def pixels(self, pixels: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]) -> Tensor:
        """Normalised input of a net from an (n, h, w, c) uint8 batch: an (n, c, h, w) tensor, channels last."""
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        scale = torch.from_numpy(1.0 / (255.0 * std)).to(self.device)[:, None, None]
        shift = torch.from_numpy(mean / std).to(self.device)[:, None, None]
        return (x.float() * scale - shift).to(self.dtype)


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
