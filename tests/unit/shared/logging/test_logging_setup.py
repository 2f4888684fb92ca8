"""A log record is one line with its context and without secrets."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from pydantic import BaseModel, SecretStr

from polydev.controller.access import RequestInfo
from polydev.shared.domain import CredentialId, GuestFile, SealedCredential, UserId, now
from polydev.shared.errors import ChannelLost, LoginFailed
from polydev.shared.host_protocol import CreateMachine
from polydev.shared.logging import context, setup

SECRET = "hunter2-hunter2-hunter2"
log = logging.getLogger("polydev.test")


@pytest.fixture(autouse=True, scope="module")
def _no_garbage() -> None:
    """Collect the futures of earlier tests now, since their collection may log an error."""
    gc.collect()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []  # set_up closes what it replaces
    hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook)
    yield
    logging.setLogRecordFactory(logging.LogRecord)
    root.handlers = before
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks


Lines = Callable[[], str]


@pytest.fixture(params=["people", "json", "journal"])
def lines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Logging in each format, and a function that returns new output."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(setup, "_is_journal", lambda: request.param == "journal")
    setup.set_up(as_json=request.param == "json")
    monkeypatch.undo()
    return written.getvalue


class Model(BaseModel):
    token: str = SECRET


@dataclass
class Holder:
    inner: str = SECRET


class Quiet:
    def __repr__(self) -> str:
        return SECRET


SEALED = SealedCredential(
    CredentialId("c"), UserId("p"), "codex", *[SECRET] * 4, key_id="key-1", created_at=now()
)
SECRETS = [
    SecretStr(SECRET),
    SEALED,
    GuestFile("/root/x", SECRET.encode()),
    SECRET.encode(),
    bytearray(SECRET.encode()),
    memoryview(SECRET.encode()),
    Model(),
    CreateMachine(
        vm_id="vm-00000000-0000-4000-8000-000000000000",
        machine_kind="browser",
        memory_mib=512,
        vcpus=1,
        disk_mib=512,
        token=SecretStr(SECRET),
    ),
    RequestInfo(authorization=SECRET, cookie=SECRET, csrf=SECRET, changes=True, source="::1"),
    Holder(),
    Quiet(),
    KeyError(SECRET),
    ValueError(ValueError(SECRET)),
    {"deep": [{"er": (Holder(), SecretStr(SECRET), SECRET.encode())}]},
    {"password": SECRET, "Authorization": SECRET, "set-cookie": SECRET},
    [[[[[[SECRET]]]]]],
    {SECRET.encode(): 1},
    iter([SECRET]),
]


@pytest.mark.parametrize("value", SECRETS, ids=lambda it: type(it).__name__)
def test_secret_is_logged_as_its_type(lines: Lines, value: object) -> None:
    log.info("got %s and %r", value, value)
    log.info("got %(it)s", {"it": value})
    log.info(value)
    log.info("the arguments do not fit: %d", value)
    logging.getLogger("a.library").warning("%s", value)
    reported = lines()
    assert SECRET not in reported
    assert reported.count("\n") == 5, reported


def _raise(error: BaseException, cause: BaseException | None = None) -> None:
    raise error from cause


@pytest.mark.parametrize(
    "error",
    [
        KeyError(SECRET),
        ExceptionGroup("several", [ValueError(SECRET), OSError(5, SECRET)]),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
    ],
    ids=lambda it: type(it).__name__,
)
def test_messages_of_foreign_errors_are_not_logged(lines: Lines, error: Exception) -> None:
    error.add_note(SECRET)
    for logger in (log, logging.getLogger("uvicorn.error")):
        try:
            _raise(error, RuntimeError(SECRET))
        except Exception:
            logger.exception("it failed")
    try:
        try:
            _raise(KeyError(SECRET))
        except KeyError:
            _raise(error)
    except Exception:
        log.warning("again", exc_info=True)
    reported = lines()
    assert SECRET not in reported
    assert type(error).__name__ in reported
    assert "RuntimeError" in reported
    assert "test_logging_setup.py" in reported


def test_messages_of_own_errors_are_logged(lines: Lines) -> None:
    try:
        _raise(ChannelLost("The channel of vm-1 was cut", hint="Ask again"))
    except ChannelLost as error:
        log.warning("failed: %s", error, exc_info=True)
    assert lines().count("The channel of vm-1 was cut. Ask again") == 2


def test_uncaught_errors_do_not_leak_secrets(lines: Lines) -> None:
    def fail() -> None:
        raise KeyError(SECRET)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except KeyError as error:
        sys.excepthook(KeyError, error, error.__traceback__)

    async def lose_a_task() -> None:
        async def task() -> None:
            fail()

        lost = asyncio.create_task(task())
        await asyncio.wait({lost})

    asyncio.run(lose_a_task())
    reported = lines()
    assert SECRET not in reported
    assert reported.count("uncaught KeyError") == 2
    assert "Task exception was never retrieved" in reported


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdefghijklmnop",
        "basic YWxhZGRpbjpvcGVuc2VzYW1l",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl",
        "pdt_0123456789abcdef",
        "sk-ant-oat01-abcdefghijkl",
        "postgresql://me:abcdefgh@db.example.test/x",
        "https://auth.example.test/cb?code=abcdefgh&state=abcdefgh",
        "http://localhost:1455/#access_token=abcdefgh",
        '{"refresh_token": "abcdefghijkl"}',
        "POLYDEV_ADMIN_TOKEN=abcdefghijkl",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nabcdefghijkl\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_secret_like_text_is_redacted(lines: Lines, text: str) -> None:
    log.info("before %s after", text)
    log.info(f"before {text} after")
    reported = lines()
    assert reported.count("redacted") >= 2
    assert reported.count("before ") == 2
    for part in ("abcdefgh", "YWxhZGRpbjpvcGVuc2VzYW1l", "c2lnbmF0dXJl", "0123456789abcdef"):
        assert part not in reported


def test_ordinary_text_is_unchanged(lines: Lines) -> None:
    message = "vm-1 of ann: step 'write' failed after 2.5 s (token expired): 3 of 4 tried"
    log.info("%s of %s: step '%s' failed after %.1f s (token expired): %d of 4 tried",
             "vm-1", "ann", "write", 2.5, 3)  # fmt: skip
    assert message in lines()


def test_machine_text_cannot_forge_a_line(lines: Lines) -> None:
    forged = "no\n12:00:00 INFO all is well\r\n\x1b[2J\x9b\x7f\u2028\u202e<3>yes"
    log.warning("it says %s", forged)
    with context.bound(machine=forged):
        log.warning("so")
    reported = lines()
    assert reported.count("\n") == 2
    assert not [char for char in reported if char != "\n" and not char.isprintable()]


def test_error_with_machine_text_is_one_line() -> None:
    assert LoginFailed("it said: a\nb", hint="try\r\nagain").line() == "it said: a b. try again"


def test_long_text_is_truncated(lines: Lines) -> None:
    log.info("%s", "x" * 1_000_000)
    assert len(lines()) < 40_000


async def test_context_reaches_tasks_and_threads(lines: Lines) -> None:
    with context.bound(session="s-1", user=None):
        with context.bound(machine="vm-1"):
            await asyncio.gather(
                asyncio.to_thread(log.info, "in a thread"),
                asyncio.create_task(_log("in a task")),
            )
        context.bind(user="ann")
        log.info("after")
    log.info("outside")
    reported = lines().splitlines()
    for line in reported[:2]:
        assert "s-1" in line
        assert "vm-1" in line
        assert "ann" not in line
    assert "ann" in reported[2]
    assert "vm-1" not in reported[2]
    assert "s-1" not in reported[3]
    if reported[0].startswith("{"):
        assert json.loads(reported[2])["session"] == "s-1"
        assert json.loads(reported[2])["user"] == "ann"


async def _log(message: str) -> None:
    log.info(message)


def test_journal_line_has_priority_and_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_is_journal", lambda: True)
    setup.set_up(as_json=False)
    log.error("a")
    log.warning("b")
    log.info("c")
    assert capsys.readouterr().err == "<3>a\n<4>b\n<6>c\n"


def test_only_journalds_socket_is_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    assert not setup._is_journal()
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not setup._is_journal()


def test_refused_websocket_is_not_logged(lines: Lines) -> None:
    """uvicorn logs this for each refused WebSocket."""
    server = logging.getLogger("uvicorn.error")
    server.error("ASGI callable returned without completing handshake.")
    server.error("Exception in ASGI application")
    assert "handshake" not in lines()
    assert "Exception in ASGI application" in lines()
