"""Logs of console and error output: bounded, and never blocking the guest."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.hostagent.vmm import console
from polydev.hostagent.vmm.console import BoundedLog, LogReader, Marker


def test_log_keeps_its_end_within_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = BoundedLog(path, 10_000)
    for number in range(20_000):
        log.append(b"line %06d\n" % number)
        assert number % 500 or sum(part.stat().st_size for part in tmp_path.iterdir()) <= 20_000
    lines = path.read_bytes().splitlines()
    assert lines[-1] == b"line 019999"
    assert 5_000 <= path.stat().st_size <= 10_000
    first = int(lines[0].split()[1])
    assert lines == [b"line %06d" % number for number in range(first, 20_000)]
    assert log.tail.endswith(b"line 019999\n")
    assert len(log.tail) <= 2048


def test_log_continues_after_an_agent_restart(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    BoundedLog(path, 1000).append(b"one\n")
    BoundedLog(path, 1000).append(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_write_errors_lose_only_the_log(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")
    (tmp_path / "console.log").symlink_to(elsewhere)
    log = BoundedLog(tmp_path / "console.log", 1000)
    log.append(b"line\n")
    assert elsewhere.read_bytes() == b"kept"
    assert log.tail == b"line\n"


@given(
    before=st.binary(max_size=200),
    after=st.binary(max_size=200),
    cuts=st.lists(st.integers(0, 500), max_size=20),
)
def test_marker_is_found_across_chunks(before: bytes, after: bytes, cuts: list[int]) -> None:
    marker = Marker("POLYDEV-READY 0123")
    text = before + b"POLYDEV-READY 0123" + after
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        marker.feed(text[start:end])
    assert marker.seen.is_set()


@given(st.lists(st.binary(max_size=50), max_size=30))
def test_similar_text_is_not_the_marker(pieces: list[bytes]) -> None:
    marker = Marker("POLYDEV-READY 0123")
    for piece in pieces:
        marker.feed(piece)
    assert marker.seen.is_set() == (b"POLYDEV-READY 0123" in b"".join(pieces))


async def test_endless_error_output_is_bounded_and_never_blocks_qemu(tmp_path: Path) -> None:
    fifo = tmp_path / "errors.fifo"
    os.mkfifo(fifo)
    theirs = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    ours = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    path = tmp_path / "error.log"
    reading = asyncio.create_task(LogReader(BoundedLog(path, 100_000)).read_pipe(ours))
    try:
        sent, lost, end_s = 0, 0, time.monotonic() + 2
        while time.monotonic() < end_s:
            try:
                sent += os.write(theirs, b"complaint\n" * 400)
            except BlockingIOError:
                lost += 1
                await asyncio.sleep(0.001)
        assert lost > 0
        assert sent > 200_000
        assert path.stat().st_size <= 200_000
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        os.close(ours)
        os.close(theirs)


async def test_cancelled_reader_still_stores_what_it_read(
    tmp_path: Path,
) -> None:
    busy = threading.Event()
    with ThreadPoolExecutor(1) as only_thread:
        asyncio.get_running_loop().set_default_executor(only_thread)
        only_thread.submit(busy.wait, 30)
        ours, theirs = os.pipe2(os.O_NONBLOCK)
        reader = LogReader(BoundedLog(tmp_path / "error.log", 1000))
        reading = asyncio.create_task(reader.read_pipe(ours))
        os.write(theirs, b"last words\n")
        async with asyncio.timeout(10):
            while reader.log.tail != b"last words\n":
                await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.sleep(0)
        busy.set()
        await asyncio.gather(reading, return_exceptions=True)
    os.close(ours)
    os.close(theirs)
    assert reading.cancelled()
    assert (tmp_path / "error.log").read_bytes() == b"last words\n"


async def test_fast_output_is_throttled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_BURST_BYTES", 10_000)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    reader = LogReader(BoundedLog(tmp_path / "console.log", 1 << 20))
    reading = asyncio.create_task(reader.read_console(ours))
    loop = asyncio.get_running_loop()
    sent, started_s = 0, loop.time()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while True:
                await loop.sock_sendall(theirs, b"x" * 4096)
                sent += 4096
    theirs.close()
    rate = sent / (loop.time() - started_s)
    ours_rate = 256 * 1024
    assert rate < 3 * ours_rate + 500_000, "what the socket holds comes on top"
    await reading
    ours.close()
