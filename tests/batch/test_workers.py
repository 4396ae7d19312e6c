"""Batches on workers: files that kill or hang them, and large images that they share."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import psutil
import pytest
from distributed import Client, KilledWorker, LocalCluster, Security
from numpy.typing import NDArray

from coarse2fine.batch import dask_cluster, request, schedule
from coarse2fine.batch.dask_cluster import connected, shared
from coarse2fine.batch.inputs import find_items
from coarse2fine.batch.request import BatchRequest, Workers
from coarse2fine.batch.run import analyze_folder, run_batch
from coarse2fine.config import Config
from coarse2fine.model import Model
from coarse2fine.steps import pieces

MEMORY = 1.2e9


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a cluster as a batch has it, in which these tests run theirs."""
    with connected(None, 2, MEMORY) as client, shared(client):
        yield client


@pytest.fixture
def model_file(tmp_path: Path, detector: Model) -> Path:
    return detector.save(tmp_path / "tiny.c2f")


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def write_bomb(path: Path, side: int) -> None:
    """A bitmap that takes little room on disk and 3 bytes a pixel in memory."""
    head = struct.pack("<IHHI", 54 + 3 * side**2, 0, 0, 54)
    with path.open("wb") as file:
        file.write(b"BM" + head + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0))
        file.truncate(54 + 3 * side**2)


def contents(out: Path) -> dict[str, bytes]:
    found = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file() and ".batch" not in p.parts}
    page = "report.html"  # that of the batch names the folder
    return {name: path.read_bytes() for name, path in found.items() if path.name != "timing.json" and name != page}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/never.tif"


def listening() -> set[tuple[str, int]]:
    """Every address at which this process and its children can be reached."""
    me = psutil.Process()
    return {
        (link.laddr.ip, link.laddr.port)
        for process in (me, *me.children(recursive=True))
        for link in process.net_connections(kind="inet")
        if link.status == psutil.CONN_LISTEN
    }


def answered(address: str, certificate: Path | None, context: ssl.SSLContext) -> bytes:
    """What a server says to someone who trusts whatever it is, with a certificate or without."""
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate)
    host, port = address.rpartition("/")[2].split(":")
    plain = socket.create_connection((host, int(port)), timeout=20)
    with plain, contextlib.suppress(OSError), context.wrap_socket(plain) as link:
        return link.recv(1)
    return b""


@pytest.mark.skipif(sys.platform == "win32", reason="ports are told apart by their processes")
def test_nobody_else_reaches_the_cluster_of_a_batch(tmp_path: Path) -> None:
    """Other users of a machine can connect to its loopback interface, and would run code as the batch's user."""
    with connected(None, 1, MEMORY) as client:
        workers = client.scheduler_info()["workers"]
        addresses = [client.scheduler.address, *workers, *(worker["nanny"] for worker in workers.values())]
        assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
        for name, holder in (("own", client.security), ("strange", Security.temporary())):
            (tmp_path / name).write_text(f"{holder.tls_client_key}\n{holder.tls_client_cert}")
        for address in addresses:
            for certificate in (None, tmp_path / "strange"):
                assert answered(address, certificate, ssl.create_default_context()) == b""
            assert answered(address, tmp_path / "own", ssl.create_default_context()) != b""
        with pytest.raises(OSError, match=r"closed|reset|Timed out"):
            Client(addresses[0].replace("tls://", "tcp://"), timeout=0.5)
        for host, port in listening():
            assert host == "127.0.0.1"
            for path in ("/", "/status", "/info/main/workers.html", "/metrics", "/health", "/json/counts.json"):
                link = http.client.HTTPConnection(host, port, timeout=5)
                with contextlib.closing(link), contextlib.suppress(OSError, http.client.HTTPException):
                    link.request("GET", path)
                    assert link.getresponse().status == 404


@pytest.mark.slow
def test_files_that_kill_or_hang_a_worker_are_named_and_the_others_done(
    client: Client, tmp_path: Path, make_image: Callable[..., NDArray[np.uint8]], model_file: Path, silent_server: str
) -> None:
    for number in range(4):
        write_png(tmp_path / "in" / f"{number}.png", make_image(120, 150, seed=number))
    write_bomb(tmp_path / "in" / "1-bomb.bmp", 24_000)
    workers = Workers(scheduler=client.scheduler.address, time_limit=12)
    items = find_items([tmp_path / "in", silent_server])
    batch = run_batch(BatchRequest(items, tmp_path / "out", model_file, workers=workers))
    assert {r.name: r.status for r in batch.failed} == {"1-bomb.bmp": "killed", "never.tif": "timeout"}
    assert sum(r.status == "done" for r in batch.records) == 4
    bomb, hung = sorted(batch.failed, key=lambda r: r.name)
    assert "its worker died 2 times" in bomb.error
    assert "read_bytes" in bomb.traceback or "raster" in bomb.traceback
    assert hung.error == "took more than 12 s"
    assert "remote.py" in hung.traceback
    analyze_folder([tmp_path / "in" / f"{n}.png" for n in range(4)], tmp_path / "plain", model_file, workers=0)
    for number in range(4):
        assert contents(tmp_path / "out" / f"{number}.png") == contents(tmp_path / "plain" / f"{number}.png")
    leftovers = [p.name for p in (tmp_path / "out" / ".batch").iterdir() if p.name not in {"log.jsonl", "batch.lock"}]
    assert leftovers == []


@pytest.mark.slow
def test_a_large_image_shared_by_all_workers_equals_one_process(
    client: Client,
    tmp_path: Path,
    make_image: Callable[..., NDArray[np.uint8]],
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_png(tmp_path / "in" / "large.png", make_image(330, 410, seed=5))
    write_png(tmp_path / "in" / "small.png", make_image(100, 100, seed=6))
    monkeypatch.setattr(request, "KEEP_FROM", 330 * 410)
    monkeypatch.setattr(pieces, "PIECE_PIXELS", 2**14)
    client.run(setattr, pieces, "PIECE_PIXELS", 2**14)
    asked: list[object] = []
    submit = client.submit

    def note(_: Client, task: object, *arguments: object, **options: object) -> object:
        asked.append(task)
        return submit(task, *arguments, **options)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "submit", note)
            workers = Workers(scheduler=client.scheduler.address, split=True)
            shared = run_batch(
                BatchRequest(find_items(tmp_path / "in"), tmp_path / "out", model_file, Config(budget=0.7), workers)
            )
    finally:
        client.run(setattr, pieces, "PIECE_PIXELS", 2**26)
    assert shared.ok, str(shared)
    tasks = Counter(asked)
    assert tasks[dask_cluster.prepare_task] == 2
    assert tasks[dask_cluster.piece_task] > 4
    assert tasks[dask_cluster.analyze_task] == 1
    plain = analyze_folder(tmp_path / "in", tmp_path / "plain", model_file, budget=0.7, workers=0)
    assert plain.ok
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_no_scheduler_there(
    tmp_path: Path, make_image: Callable[..., NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECTION_SECONDS", 0.5)
    write_png(tmp_path / "in" / "a.png", make_image(60, 60))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match=str(port)):
        analyze_folder(tmp_path / "in", tmp_path / "out", scheduler=f"tcp://127.0.0.1:{port}")


def test_a_scheduler_without_workers_is_told_of(
    tmp_path: Path, make_image: Callable[..., NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    write_png(tmp_path / "in" / "a.png", make_image(60, 60))
    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty:
        threading.Timer(3.0, empty.scale, (1,)).start()
        batch = analyze_folder(tmp_path / "in", tmp_path / "out", "digits", scheduler=empty.scheduler_address)
        assert f"no worker is connected to {empty.scheduler_address} yet" in caplog.text
    assert batch.ok


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to a single process there")
def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(
    tmp_path: Path, make_image: Callable[..., NDArray[np.uint8]], model_file: Path
) -> None:
    for number in range(40):
        write_png(tmp_path / "in" / f"{number:02}.png", make_image(300, 300, seed=number))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "coarse2fine.cli.main", "analyze", str(tmp_path / "in"), "-o", str(out)]
    command += ["-m", str(model_file), "-n", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while not (out / ".batch" / "log.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "image(s) are left: run the same command again to go on" in errors
    assert "Traceback" not in errors
    statuses = json.loads((out / "batch.json").read_text())["statuses"]
    assert statuses["done"] + statuses["waiting"] == 40
    # One more may have been finished while it ended.
    assert statuses["done"] <= len(list(out.glob("*.png/record.json"))) <= statuses["done"] + 1
    assert 0 < statuses["waiting"] < 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_batch_system_starts_the_workers(
    tmp_path: Path, make_image: Callable[..., NDArray[np.uint8]], model_file: Path
) -> None:
    """With the stand-in of dask-jobqueue, which runs its job scripts on this machine."""
    local = pytest.importorskip("dask_jobqueue.local")
    for number in range(3):
        write_png(tmp_path / "in" / f"{number}.png", make_image(120, 150, seed=number))
    options = {"cores": 1, "memory": "3GB", "processes": 1, "local_directory": str(tmp_path / "scratch")}
    with local.LocalCluster(
        **options, log_directory=str(tmp_path), scheduler_options={"dashboard_address": ":0"}
    ) as jobs:
        jobs.scale(1)
        batch = analyze_folder(tmp_path / "in", tmp_path / "out", model_file, scheduler=jobs.scheduler_address)
    assert batch.ok
    analyze_folder(tmp_path / "in", tmp_path / "plain", model_file, workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    gc.collect()  # pipes of the stand-in, which it does not close


class Lost:
    """A task of which every worker died before it began."""

    status = "error"

    def result(self) -> None:
        raise KilledWorker("task", None, 10)

    def release(self) -> None:
        """Nothing is held of it."""


class Deadly:
    """A client of such workers."""

    cluster = None

    def submit(self, *_: object, **__: object) -> Lost:
        return Lost()

    def nthreads(self) -> dict[str, int]:
        return {"worker": 1}

    def cancel(self, _: object) -> None:
        """Nothing runs."""


def test_workers_that_cannot_begin_end_the_batch(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "in" / "a.png", np.zeros((64, 64, 3), np.uint8))
    jobs = BatchRequest(find_items(tmp_path / "in"), tmp_path / "out", model_file, workers=Workers(1)).jobs()
    monkeypatch.setattr(schedule, "wait", lambda futures, **_: SimpleNamespace(done=futures))
    (record,) = schedule.run_jobs(cast("Client", Deadly()), jobs, split=False)
    assert record.status == "killed"
    assert "too little memory" in record.error
