"""Files of strangers: regular, present, and no larger than promised."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from coarse2fine.tiling.storage.regular import FileTooLargeError, open_regular, read_regular


@pytest.mark.parametrize("size", [0, 99, 100])
@pytest.mark.parametrize("unzip", [False, True])
def test_what_is_small_enough_is_read_whole(tmp_path: Path, size: int, unzip: bool) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"a" * size)
    assert read_regular(path, 100, unzip=unzip) == b"a" * size


def test_compressed_files_are_unpacked_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "content.gz"
    path.write_bytes(gzip.compress(b"a" * 60) + gzip.compress(b"b" * 40))
    assert read_regular(path, 100, unzip=True) == gzip.decompress(path.read_bytes())
    assert read_regular(path, 100) == path.read_bytes()


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    stored, packed, sparse = tmp_path / "stored", tmp_path / "packed", tmp_path / "sparse"
    stored.write_bytes(b"a" * 101)
    packed.write_bytes(gzip.compress(b"a" * 60) + gzip.compress(b"b" * 41))
    with sparse.open("wb") as file:
        file.truncate(10**12)
    for path in (stored, packed, sparse):
        with pytest.raises(FileTooLargeError, match=f"{path.name}.*100"):
            read_regular(path, 100, unzip=True)


@pytest.mark.parametrize("content", [gzip.compress(b"a" * 60, mtime=0)[:-9], b"\x1f\x8bnothing"])
def test_damaged_compression_is_an_error_of_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        read_regular(tmp_path / "damaged", 1000, unzip=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe or device"):
        open_regular(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices here")
def test_links_to_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="pipe or device"):
        read_regular(tmp_path / "link", 100)


def test_folders_and_absent_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")
