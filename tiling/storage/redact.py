"""Removal of passwords and signatures from addresses that are shown, logged or stored."""

from __future__ import annotations

import re

MASK = "***"
"""Replacement for secrets."""
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/?#\s@:]*)(?P<password>:[^/?#\s]*)?@")
_WORDS = "sig|token|secret|key|passw|pwd|auth|cred|jwt|policy|session|code|access|ticket|hmac|hash|sas"
_VALUE = re.compile(
    rf"(?P<name>[?&;#][^=&#?\s]*(?:{_WORDS})[^=&#?\s]*=)[^&#\s'\"<>()]*[^&#\s'\"<>():,;.]", re.IGNORECASE
)
# Parameters of cloud signatures, which differ each time and do not identify the object.
_SIGNED = re.compile(
    r"(?<=[?&])(?:x-amz-[a-z0-9-]*|x-goog-[a-z0-9-]*|awsaccesskeyid|googleaccessid|signature|expires|key-pair-id|policy"
    r"|sig|se|st|sp|sv|sr|spr|sip|ske|skt|sks|skv|skoid|sktid)=[^&#]*&?",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace possible secrets in the addresses of a text by three stars.

    Parameters
    ----------
    text : str
        An address, or any text with addresses in it, such as an error's.

    Returns
    -------
    str
        Text without the passwords before a host, and without the values of query parameters whose names suggest a
        signature, token, key or password. The rest stays, as it identifies the image.
    """
    return _VALUE.sub(rf"\g<name>{MASK}", _USER.sub(_without_password, text))


def identity(url: str) -> str:
    """Part of an address that identifies the object: all but the password and a cloud's temporary signature."""
    return _SIGNED.sub("", _USER.sub(_without_password, url)).rstrip("?&")


def _without_password(found: re.Match[str]) -> str:
    scheme, user, password = found["scheme"], found["user"], found["password"]
    if password is not None:
        return f"{scheme}://{user}:{MASK}@"
    # A user name may be a token in http; elsewhere it is a location, such as the container in abfs://container@account.
    return f"{scheme}://{MASK}@" if scheme.lower().startswith(("http", "ftp")) else found[0]
