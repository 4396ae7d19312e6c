"""Number formats of nets, in a file without torch: the command's help lists them."""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
"""bfloat16 if the hardware multiplies it natively, else float32; or one of them."""
