"""BMP: headers of every version, palettes, bit fields and run lengths.

Pixels are decoded here and not by a library, because libraries follow an offset of pixels that points into the header,
and take padding bytes for opacity.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..geometry import ceil_div

_FILE_HEADER = 14
_CORE, _INFO, _WITH_MASKS, _WITH_ALPHA = 12, 40, 52, 56
_HEADERS = (_CORE, _INFO, _WITH_MASKS, _WITH_ALPHA, 64, 108, 124)
_PLAIN, _RUNS_8, _RUNS_4, _FIELDS, _ALPHA_FIELDS = 0, 1, 2, 3, 6
_BITS = {_PLAIN: (1, 4, 8, 16, 24, 32), _RUNS_8: (8,), _RUNS_4: (4,), _FIELDS: (16, 32), _ALPHA_FIELDS: (16, 32)}
_WIDEST = 0xFFFF
_DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}


@dataclass(frozen=True)
class BmpHeader:
    """Header of a BMP.

    Parameters
    ----------
    height, width : int
        In pixels.
    from_top : bool
        Whether the upper row is stored first.
    bits : int
        Bits of a stored pixel.
    compression : int
    offset : int
        Byte at which pixels begin.
    palette : (int, int, int)
        Byte at which it begins, number of colours, and bytes of each; no colours from 16 bits on.
    masks : tuple of int
        Bits of red, green, blue and opacity in pixels of 16 or 32 bits.
    per_meter : (int, int)
        Pixels per meter, across and down; 0 if not stated.
    """

    height: int
    width: int
    from_top: bool
    bits: int
    compression: int
    offset: int
    palette: tuple[int, int, int]
    masks: tuple[int, ...]
    per_meter: tuple[int, int]

    @property
    def runs(self) -> bool:
        """Whether pixels are stored as run lengths."""
        return self.compression in (_RUNS_8, _RUNS_4)

    @property
    def stride(self) -> int:
        """Bytes of a stored row."""
        return ceil_div(self.width * self.bits, 32) * 4

    @property
    def samples(self) -> int:
        """Most samples of a decoded pixel."""
        return 4 if self.masks[3] else 3


def read_bmp_header(data: bytes) -> BmpHeader:
    """Read and check the header.

    Raises
    ------
    struct.error
        If it is cut off.
    ValueError
        If it contradicts itself, or states what no BMP can have.
    """
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in _HEADERS:
        raise ValueError(f"its header is said to have {size} bytes")
    compression, colours, per_meter = _PLAIN, 0, (0, 0)
    if size == _CORE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        *per_meter_read, colours = struct.unpack_from("<iiI", data, 38)
        per_meter = (per_meter_read[0], per_meter_read[1])
    if bits not in _BITS.get(compression, ()):
        raise ValueError(f"pixels of {bits} bits in compression {compression} are of no known kind")
    if width < 1 or height == 0:
        raise ValueError(f"it states {height} x {width} pixels")
    masks, end = _masks(data, size, bits, compression)
    entry, most = 3 if size == _CORE else 4, 1 << bits if bits <= 8 else 0
    colours = (colours or most) if most else 0
    if colours > max(most, 0):
        raise ValueError(f"it states {colours} colours for pixels of {bits} bits")
    if offset < end + colours * entry:
        raise ValueError(f"its pixels are said to begin at byte {offset}, within the header")
    return BmpHeader(abs(height), width, height < 0, bits, compression, offset, (end, colours, entry), masks, per_meter)


def _masks(data: bytes, size: int, bits: int, compression: int) -> tuple[tuple[int, ...], int]:
    """Masks of the samples, and the byte at which the header ends."""
    end = _FILE_HEADER + size
    masks = _DEFAULT_MASKS.get(bits, (0, 0, 0, 0))
    if compression in (_FIELDS, _ALPHA_FIELDS):
        count = 4 if compression == _ALPHA_FIELDS or _WITH_ALPHA <= size != 64 else 3
        masks = (*struct.unpack_from(f"<{count}I", data, _FILE_HEADER + _INFO), 0)[:4]
        if size < _WITH_MASKS:
            end += 4 * count
        for mask in masks:
            low = mask & -mask
            if mask >> bits or (mask and (mask // low > _WIDEST or (mask // low) & (mask // low + 1))):
                raise ValueError(f"the bits of its samples are {', '.join(f'{m:#x}' for m in masks)}")
        if not all(masks[:3]):
            raise ValueError("a colour has no bits")
    return masks, end


def decode_bmp(data: bytes) -> NDArray[np.uint8]:
    """Decode a whole file.

    Returns
    -------
    (h, w) or (h, w, 3 or 4) uint8 array
        Grey if all colours of the palette are grey; with opacity if it has bits of its own.

    Raises
    ------
    struct.error, LookupError, ValueError
        If it is damaged.
    """
    header = read_bmp_header(data)
    if header.runs:
        stored = _unrolled(data, header)
    else:
        count = header.stride * header.height
        rows = np.frombuffer(data, np.uint8, count, header.offset).reshape(header.height, header.stride)
        stored = _pixels(rows, header)
    if header.bits <= 8:
        stored = _palette(data, header)[stored]
    return stored if header.from_top else stored[::-1]


def _pixels(rows: NDArray[np.uint8], header: BmpHeader) -> NDArray[np.uint8]:
    """Indices (h, w) or colours (h, w, 3 or 4) in stored rows."""
    if header.bits < 8:
        bits = np.unpackbits(rows, axis=1)[:, : header.width * header.bits]
        groups = bits.reshape(header.height, header.width, header.bits)
        return np.packbits(groups, axis=2)[..., 0] >> np.uint8(8 - header.bits)
    if header.bits == 8:
        return rows[:, : header.width]
    if header.bits == 24:
        return rows[:, : 3 * header.width].reshape(header.height, header.width, 3)[..., ::-1]
    words = rows.view(f"<u{header.bits // 8}")[:, : header.width]
    out = np.empty((header.height, header.width, header.samples), dtype=np.uint8)
    for sample in range(header.samples):
        mask = header.masks[sample]
        low = mask & -mask
        values = (words & words.dtype.type(mask)) // words.dtype.type(low)
        top = mask // low
        out[..., sample] = np.rint(np.arange(top + 1) * (255.0 / top)).astype(np.uint8)[values]
    return out


def _palette(data: bytes, header: BmpHeader) -> NDArray[np.uint8]:
    """Colours (256, 3), or greys (256,), of all indices; those that the file does not name are black."""
    begin, colours, entry = header.palette
    stored = np.frombuffer(data, np.uint8, colours * entry, begin).reshape(colours, entry)
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[:colours] = stored[:, 2::-1]
    return palette[:, 0] if (palette == palette[:, :1]).all() else palette


def _unrolled(data: bytes, header: BmpHeader) -> NDArray[np.uint8]:
    """Indices (h, w) decoded from run lengths; pixels left out have index 0."""
    out = np.zeros((header.height, header.width), dtype=np.uint8)
    nibbles = header.compression == _RUNS_4
    y = x = 0
    place = header.offset
    while y < header.height:
        if place + 2 > len(data):
            raise ValueError("its run lengths are cut off")
        count, value = data[place], data[place + 1]
        place += 2
        if count == 0 and value < 2:  # the end of a row, or of the image
            if value == 1:
                break
            y, x = y + 1, 0
            continue
        if count == 0 and value == 2:
            x, y = x + data[place], y + data[place + 1]
            place += 2
            if x > header.width or y > header.height:
                raise ValueError("its run lengths leave the image")
            continue
        if count:
            values = np.array([value >> 4, value & 15] if nibbles else [value], dtype=np.uint8)
            run = np.resize(values, count)
        else:
            count, size = value, ceil_div(value, 2) if nibbles else value
            run = np.frombuffer(data, np.uint8, size, place)
            run = np.stack([run >> 4, run & 15], axis=1).ravel()[:count] if nibbles else run
            place += size + size % 2
        if x + count > header.width:
            raise ValueError("its run lengths leave the image")
        out[y, x : x + count] = run
        x += count
    return out
