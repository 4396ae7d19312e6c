"""Measurements in processes of their own, which print a JSON object as their last line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


def printed_json(
    command: Sequence[str], what: str, *, given: str | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a command, and read the object in the last line that it prints.

    Parameters
    ----------
    command : sequence of str
    what : str
        What fails, for the message.
    given : str, optional
        Its standard input.
    environment : mapping, optional
        Its environment; by default this process's.

    Raises
    ------
    OSError
        If it fails; with its last line on standard error.
    """
    done = subprocess.run(  # noqa: S603 (Python, with modules of this project)
        command, input=given, env=environment, capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise OSError(f"{what} failed: {reason}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
