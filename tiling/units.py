"""Units of length: names and symbols of OME-XML, OME-NGFF, ImageJ and TIFF tags, and their size in microns."""

from __future__ import annotations

_PREFIXES = {
    "yotta": ("Y", 24),
    "zetta": ("Z", 21),
    "exa": ("E", 18),
    "peta": ("P", 15),
    "tera": ("T", 12),
    "giga": ("G", 9),
    "mega": ("M", 6),
    "kilo": ("k", 3),
    "hecto": ("h", 2),
    "deca": ("da", 1),
    "": ("", 0),
    "deci": ("d", -1),
    "centi": ("c", -2),
    "milli": ("m", -3),
    "micro": ("µ", -6),
    "nano": ("n", -9),
    "pico": ("p", -12),
    "femto": ("f", -15),
    "atto": ("a", -18),
    "zepto": ("z", -21),
    "yocto": ("y", -24),
}
_MICRONS: dict[str, float] = {
    **{f"{prefix}meter": float(f"1e{power + 6}") for prefix, (_, power) in _PREFIXES.items()},
    "angstrom": 1e-4,
    "thou": 25.4,
    "line": 25400 / 12,
    "point": 25400 / 72,
    "inch": 25400.0,
    "foot": 304800.0,
    "us survey foot": 1200 / 3937 * 1e6,
    "yard": 914400.0,
    "mile": 1609.344e6,
    "astronomical unit": 1.495978707e17,
    "light year": 9.4607304725808e21,
    "parsec": 3.0856775814913673e22,
}
# Symbols are case-sensitive: Mm is a million meters.
_SYMBOLS = {
    **{f"{symbol}m": f"{prefix}meter" for prefix, (symbol, _) in _PREFIXES.items()},
    "Å": "angstrom",
    "thou": "thou",
    "mil": "thou",
    "li": "line",
    "pt": "point",
    "in": "inch",
    '"': "inch",
    "ft": "foot",
    "yd": "yard",
    "mi": "mile",
    "ua": "astronomical unit",
    "ly": "light year",
    "pc": "parsec",
    "um": "micrometer",
    "µ": "micrometer",
    "u": "micrometer",
}
_OTHER_NAMES = {"micron": "micrometer", "feet": "foot", "inches": "inch", "us survey feet": "us survey foot"}


def unit_name(text: str) -> str:
    """English singular name of a unit of length given by name or symbol; any other text unchanged."""
    # The micro sign, the Greek letter and the ring of Å have two codes each; ImageJ escapes what is not ASCII.
    plain = text.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("μ", "µ")
    plain = plain.replace("\\u00C5", "Å").replace("Å", "Å")
    if plain in _SYMBOLS:
        return _SYMBOLS[plain]
    name = plain.lower().replace("metre", "meter")
    candidates = (_OTHER_NAMES.get(known, known) for known in (name, name.removesuffix("s")))
    return next((known for known in candidates if known in _MICRONS), text)


def microns(unit: str) -> float | None:
    """Microns in a unit given by name or symbol; None if it is not one of length."""
    return _MICRONS.get(unit_name(unit))
