"""Errors of the pixel layer."""


class ImageError(ValueError):
    """An image cannot be opened or read; the message names the file, the cause and the remedy."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says how to install it.

    Parameters
    ----------
    package : str
        Name of the package.
    purpose : str
        Operation that needs it.
    extra : str
        Extra of coarse2fine that installs it.
    """

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: {install(extra)}")


def install(extra: str) -> str:
    """How to install an extra, for messages."""
    return f'pip install "coarse2fine[{extra}]", or in a checkout: pip install -e ".[{extra}]"'
