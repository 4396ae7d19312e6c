"""Passwords and signatures in addresses: left out of all that is shown, logged or stored."""

from __future__ import annotations

import re

MASK = "***"
"""Stands for what is left out."""

_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/?#\s@:]*)(?P<password>:[^/?#\s]*)?@")
_WORDS = "sig|token|secret|key|passw|pwd|auth|cred|jwt|policy|session|code|access|ticket|hmac|hash|sas"
_VALUE = re.compile(
    rf"(?P<name>[?&;#][^=&#?\s]*(?:{_WORDS})[^=&#?\s]*=)[^&#\s'\"<>()]*[^&#\s'\"<>():,;.]", re.IGNORECASE
)
# What clouds add to the address of one object, anew each time; it does not tell which object it is.
_SIGNED = re.compile(
    r"(?<=[?&])(?:x-amz-[a-z0-9-]*|x-goog-[a-z0-9-]*|awsaccesskeyid|googleaccessid|signature|expires|key-pair-id|policy"
    r"|sig|se|st|sp|sv|sr|spr|sip|ske|skt|sks|skv|skoid|sktid)=[^&#]*&?",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace what may be secret in the addresses of a text by three stars.

    Parameters
    ----------
    text : str
        An address, or any text with addresses in it, such as an error's.

    Returns
    -------
    str
        Without the passwords before a host, and without the values of query parameters whose names sound like a
        signature, token, key or password. The rest stays: it tells which image it is.
    """
    return _VALUE.sub(rf"\g<name>{MASK}", _USER.sub(_without_password, text))


def identity(url: str) -> str:
    """What tells an address from others: all but the password, and the signature that a cloud makes anew each time."""
    return _SIGNED.sub("", _USER.sub(_without_password, url)).rstrip("?&")


def _without_password(found: re.Match[str]) -> str:
    scheme, user, password = found["scheme"], found["user"], found["password"]
    if password is not None:
        return f"{scheme}://{user}:{MASK}@"
    # Of http a name alone may be a token; elsewhere it is a place, such as the container in abfs://container@account.
    return f"{scheme}://{MASK}@" if scheme.lower().startswith(("http", "ftp")) else found[0]
