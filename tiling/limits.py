"""Bound on the memory that decoding may take, whatever an untrusted file states."""

from __future__ import annotations

from .errors import ImageError

UNIT_BYTES = 2**32
"""Most bytes for one decoded unit (a chunk, tile, strip, or picture decoded whole), scratch included: encoded bytes,
intermediates of its codecs, conversions. 30,000 x 30,000 pixels of colour fit."""


def check_unit(count_bytes: int, what: str) -> None:
    """Refuse a unit whose decoding would take more than `UNIT_BYTES`; call it before memory is taken.

    Parameters
    ----------
    count_bytes : int
        Decoded bytes and all scratch, computed from header or metadata.
    what : str
        File and unit, such as "a.tif: one tile of 512 x 512 x 3 samples".

    Raises
    ------
    ImageError
        If it takes more; the message has both numbers and the remedy.
    """
    if count_bytes > UNIT_BYTES:
        raise ImageError(
            f"{what} takes {count_bytes:,} bytes to decode, more than the limit of {UNIT_BYTES:,}; "
            "the header is damaged, or the image should be written again in smaller tiles or chunks"
        )
