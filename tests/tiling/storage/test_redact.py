"""Secrets in addresses: what is shown, what tells addresses apart, and where nothing of them may be found."""

from __future__ import annotations

import pytest

from coarse2fine.batch.inputs import Item
from coarse2fine.batch.job import Record
from coarse2fine.tiling.storage.redact import identity, redact

SECRET = "5ecretX9+/=="
AMAZON = (
    "https://b.s3.amazonaws.com/a.tif?X-Amz-Algorithm=AWS4&X-Amz-Credential={s}%2F20240101&X-Amz-Date=2024"
    "&X-Amz-Signature={s}&X-Amz-Security-Token={s}&versionId=7"
)
AZURE = "https://x.blob.core.windows.net/c/a.tif?sv=2024&se=2024-01-01T00%3A00%3A00Z&sr=b&sp=r&sig={s}"
GOOGLE = "https://storage.googleapis.com/b/a.tif?GoogleAccessId={s}&Expires=1&Signature={s}&file=1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:{s}@host/a.tif", "https://me:***@host/a.tif"),
        ("https://me:a@{s}@host/a.tif", "https://me:***@host/a.tif"),
        ("https://{s0}@host/a.tif", "https://***@host/a.tif"),
        ("zip://x::ftp://me:{s}@host/a.tif", "zip://x::ftp://me:***@host/a.tif"),
        ("https://host/a.tif?token={s}&z=1", "https://host/a.tif?token=***&z=1"),
        ("https://host/a.tif?z=1&api_key={s}#access_token={s}", "https://host/a.tif?z=1&api_key=***#access_token=***"),
        (AZURE, AZURE.replace("{s}", "***")),
        ("abfs://container@account.dfs.core.windows.net/a.tif", "abfs://container@account.dfs.core.windows.net/a.tif"),
        ("https://host/a@b/c.tif?size=3&x=1", "https://host/a@b/c.tif?size=3&x=1"),
        ("/home/me/a?key=b.tif", "/home/me/a?key=***"),
    ],
)
def test_only_secrets_are_left_out(url: str, shown: str) -> None:
    # A slash ends the host; in a password it is encoded.
    said = redact(url.format(s=SECRET.replace("/", "%2F") if "@host" in url else SECRET, s0="ghp0123"))
    assert said == shown
    assert redact(said) == said


@pytest.mark.parametrize("url", [AMAZON, AZURE, GOOGLE])
def test_no_secret_in_a_text_around_an_address(url: str) -> None:
    whole = url.format(s=SECRET)
    text = redact(f"ClientResponseError(403, url='{whole}') after <{whole}>, {whole}")
    assert SECRET not in text
    assert text.count("a.tif") == 3


def test_identity_outlives_signatures_and_tells_images_apart() -> None:
    for url in (AMAZON, AZURE, GOOGLE, "https://me:{s}@host/a.tif"):
        assert identity(url.format(s="one")) == identity(url.format(s="two"))
    assert identity(AMAZON).endswith("/a.tif?versionId=7")
    assert identity(GOOGLE).endswith("/a.tif?file=1")
    assert identity(AZURE).endswith("/a.tif")
    different = [
        "https://h/a.tif",
        "https://h/b.tif",
        "https://h/a.tif?key=1",
        "https://h/a.tif?key=2",
        "https://g/a.tif",
    ]
    assert len({identity(url) for url in different}) == len(different)


def test_records_of_a_batch_hold_no_secret() -> None:
    item = Item(AZURE.format(s=SECRET), name="a.tif")
    record = Record(item.name, item.source, "failed", f"{item.source}: no", f"Traceback ...\n{item.source}\n")
    assert SECRET not in str(record.to_json())
    assert record.error.startswith(f"{record.source}: ")
