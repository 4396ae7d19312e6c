"""Locks between processes."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from coarse2fine.tiling.writing.lock import locked

HOLDER = """
import sys
from pathlib import Path
from coarse2fine.tiling.writing.lock import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_lock_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="somebody else"), locked(path, "somebody else"):
            pass
        holder.kill()
    with locked(path, "somebody else"):
        pass
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(reason, "no locks")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    done = []
    with locked(tmp_path / "a.lock", "busy"):
        done.append(True)
    assert done
