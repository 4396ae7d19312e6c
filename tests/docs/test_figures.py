"""The page of figures says what the benchmarks' files say."""

from __future__ import annotations

import json

from documents.figures import PAGE, RECORDS, page


def test_the_page_is_made_from_the_files() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python scripts/illustrate.py figures"


def test_every_printed_line_is_there() -> None:
    text = PAGE.read_text("utf-8")
    files = sorted(RECORDS.glob("*.json"))
    assert files
    for path in files:
        record = json.loads(path.read_text("utf-8"))
        assert f"\n## {path.stem}\n" in text
        assert "\n".join(record["printed"]) in text
        assert "/" not in (record["parameters"].get("data") or "")  # no path of a machine
