"""The one bound on the memory that decoding may take, whatever a stranger's file promises."""

from __future__ import annotations

from .errors import ImageError

UNIT_BYTES = 2**32
"""Bytes that one decoded unit (a chunk, tile, strip, or picture decoded whole) takes at most, with what its decoder
holds beside it: encoded bytes, intermediates of its codecs, conversions. 30,000 x 30,000 pixels of colour fit."""


def check_unit(count_bytes: int, what: str) -> None:
    """Refuse a unit whose decoding would take more than `UNIT_BYTES`; call it before memory is taken.

    Parameters
    ----------
    count_bytes : int
        Decoded bytes and all scratch, by what the header or the metadata promise.
    what : str
        The file, and which unit of it: "a.tif: one tile of 512 x 512 x 3 samples".

    Raises
    ------
    ImageError
        If it is too much, with both numbers and the remedy.
    """
    if count_bytes > UNIT_BYTES:
        raise ImageError(
            f"{what} takes {count_bytes:,} bytes to decode, more than the limit of {UNIT_BYTES:,}; "
            "the header is damaged, or the image should be written again in smaller tiles or chunks"
        )
