"""Files that appear whole or not at all, wherever they are written."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from coarse2fine.model import Model
from coarse2fine.tiling.conversion.convert import convert
from coarse2fine.tiling.writing.atomic import new_folder, replace_file, replacing, replacing_folder, replacing_stream


@contextmanager
def streamed(target: Path) -> Iterator[Callable[[bytes], object]]:
    with replacing_stream(target, sync=True) as stream:
        yield stream.write


@contextmanager
def named(target: Path) -> Iterator[Callable[[bytes], object]]:
    with replacing(target) as temporary:
        yield temporary.write_bytes


@pytest.mark.parametrize("write", [streamed, named])
def test_a_file_is_the_new_one_or_the_old_one(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Callable[[bytes], object]]]
) -> None:
    target = tmp_path / "a.bin"
    with write(target) as put:
        put(b"first")
        assert not target.exists()
    with pytest.raises(OSError, match="No space left"), write(target) as put:  # noqa: PT012
        put(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.bin", b"first")]


def test_compressed_files_are_whole_and_equal(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        replace_file(tmp_path / name, b"content" * 1000)
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()) == b"content" * 1000
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_files_have_the_usual_permissions(tmp_path: Path, detector: Model) -> None:
    before = os.umask(0o027)
    try:
        detector.save(tmp_path / "m.c2f")
        replace_file(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_nothing_is_written_through_planted_links(tmp_path: Path, detector: Model) -> None:
    """In a folder that others may write into, such as /tmp, they lay links under the names they expect."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("m.c2f", "m.c2f.part", "m.c2f.tmp", "m.part", "m.tmp", ".m.c2f.tmp", ".m.c2f.part", "m.c2f~"):
        (shared / name).symlink_to(victim)
    path = detector.save(shared / "m.c2f")
    assert victim.read_bytes() == b"precious"
    assert path.is_file()
    assert not path.is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_conversion_does_not_empty_what_a_planted_link_leads_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "only-copy").write_bytes(b"precious")
    (tmp_path / ".scene.zarr.partial").symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"\.scene\.zarr\.partial: expected a folder .* found a link"):
        convert(np.zeros((64, 64), np.uint8), tmp_path / "scene.zarr")
    assert {p.name for p in victim.iterdir()} == {"only-copy"}


def test_folders_replace_or_do_not(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("first", "second"):
        with replacing_folder(target) as temporary:
            temporary.mkdir()
            (temporary / "a").write_text(content)
    with pytest.raises(FileExistsError), new_folder(target) as temporary:
        temporary.mkdir()
    assert (target / "a").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files there")
def test_a_full_disk_leaves_the_old_model(tmp_path: Path, detector: Model) -> None:
    """A process that may not write more than a few bytes to a file stands for a full disk."""
    import resource  # noqa: PLC0415 (not on Windows)

    path = detector.save(tmp_path / "m.c2f")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            detector.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
