"""Errors of the pixel layer."""


class ImageError(ValueError):
    """An image cannot be opened or read; the message names the file, the cause and the remedy."""
