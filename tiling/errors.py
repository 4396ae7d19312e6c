"""Errors of the pixel layer."""


class ImageError(ValueError):
    """An image cannot be opened or read; the message names the file, the cause and the remedy."""


class MissingExtraError(ImportError):
    """A package that only some work needs is not installed; the message says how to install it.

    Parameters
    ----------
    package : str
        Its name.
    purpose : str
        What needs it.
    extra : str
        The extra that it comes with.
    """

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(f'{purpose} needs {package}, which is not installed: pip install "coarse2fine[{extra}]"')
