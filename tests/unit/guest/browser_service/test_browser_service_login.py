"""A login ends with credentials or with a reason, whatever the CLI does."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from login_recipes import URL, login_of

from polydev.guest.browser_service.login import Login, NotWaiting, PasteRefused, Step

WRITE = 'printf \'{"tokens": {"refresh": "r1"}}\' > $HOME/.made-up/login.json'


async def test_complete_credentials_are_reported_when_the_cli_ends_well(tmp_path: Path) -> None:
    login = login_of(WRITE, tmp_path)
    await login.run()
    assert login.step is Step.READY
    assert login.credentials == {"tokens": {"refresh": "r1"}}
    assert (tmp_path / ".made-up").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit code 3"),
        (f"{WRITE}; exit 1", "exit code 1"),
        ("kill -9 $$", "exit code -9"),
        ("true", "wrote no credentials file"),
        ("echo '{' > $HOME/.made-up/login.json", "not JSON"),
        ("echo '[]' > $HOME/.made-up/login.json", "not a JSON object"),
        ("echo '{\"tokens\": NaN}' > $HOME/.made-up/login.json", "not JSON"),
        ("echo '{\"tokens\": {}}' > $HOME/.made-up/login.json", "no value at /tokens/refresh"),
        ("head -c 5000 /dev/zero > $HOME/.made-up/login.json", "larger than 4096 bytes"),
        ("mkdir $HOME/.made-up/login.json", "regular file"),
        ("mkfifo $HOME/.made-up/login.json", "regular file"),
        ("ln -s /etc/passwd $HOME/.made-up/login.json", "cannot be read"),
    ],
)
async def test_other_outcomes_are_failures_with_a_reason(
    tmp_path: Path, script: str, reason: str
) -> None:
    login = login_of(script, tmp_path)
    await login.run()
    assert login.step is Step.FAILED
    assert reason in login.reason
    assert login.credentials is None


async def test_old_credentials_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".made-up").mkdir()
    (tmp_path / ".made-up" / "login.json").write_text('{"tokens": {"refresh": "old"}}')
    login = login_of("true", tmp_path)
    await login.run()
    assert "did not change" in login.reason


async def test_missing_cli_is_named(tmp_path: Path) -> None:
    login = login_of("exec no-such-cli", tmp_path)
    await login.run()
    assert login.step is Step.FAILED
    assert "no-such-cli" in login.reported_output()


async def test_unreadable_environment_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "environment").write_bytes(b"A=\xff\n")
    login = login_of("true", tmp_path)
    await login.run()
    assert login.step is Step.FAILED
    assert "UnicodeDecodeError" in login.reason


async def test_the_time_limit_ends_the_cli_and_its_children(tmp_path: Path) -> None:
    script = "sh -c 'echo $$ > $HOME/child; trap \"\" TERM HUP; sleep 1000' & wait"
    login = login_of(script, tmp_path, login_limit_s=1.0)
    await login.run()
    assert "longer than 1 s" in login.reason
    child = int((tmp_path / "child").read_text())
    await until(lambda: not is_alive(child))


async def test_endless_output_is_drained_and_truncated(tmp_path: Path) -> None:
    login = login_of("yes filler-line | head -c 3000000; echo the-very-end; exit 1", tmp_path)
    await login.run()
    assert "exit code 1" in login.reason
    assert login.reported_output().endswith("the-very-end")
    assert len(login.reported_output().encode()) <= 2048


async def test_the_cli_gets_the_hosts_environment_and_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("HTTPS_PROXY=http://p.example.test:1\nA=b=c\nempty\n")
    script = 'echo "$HTTPS_PROXY $A $MADE_UP $(stty size < /dev/tty)"; test -t 1; exit 1'
    login = login_of(script, tmp_path)
    await login.run()
    assert "http://p.example.test:1 b=c yes 40 120" in login.reported_output()


async def test_a_code_is_typed_once_the_cli_asks_for_it(tmp_path: Path) -> None:
    """Like other terminal programs, this CLI discards input that comes before its prompt."""
    script = (
        'mkfifo $HOME/go; read x < $HOME/go; printf "Code: "; read code; '
        f'test "$code" = abc1#S1 && {WRITE}'
    )
    login = login_of(script, tmp_path)
    async with running(login):
        pasting = asyncio.create_task(login.paste_code(" abc1#S1 "))
        await asyncio.sleep(0)
        await until((tmp_path / "go").exists)
        assert not pasting.done()
        (tmp_path / "go").write_text("\n")
        await pasting
        assert await login.wait_for(lambda: login.has_ended, 20)
    assert login.step is Step.READY


async def test_typed_secret_is_not_reported(tmp_path: Path) -> None:
    login = login_of('printf "Code: "; read code; echo "no good: $code"; exit 1', tmp_path)
    async with running(login):
        await login.paste_code("abc1#S1")
        assert await login.wait_for(lambda: login.has_ended, 20)
    assert "no good: [hidden]" in login.reported_output()
    assert "abc1" not in login.reported_output()


async def test_code_is_not_typed_unasked(tmp_path: Path) -> None:
    login = login_of("exit 1", tmp_path)
    async with running(login):
        with pytest.raises(NotWaiting):
            await login.paste_code("abc1#S1")
        with pytest.raises(PasteRefused, match="complete code"):
            await login.paste_code("abc1")
        with pytest.raises(NotWaiting):
            await login.paste_callback("http://localhost:4444/back?code=1&state=S1")


async def test_only_urls_of_the_provider_are_accepted(tmp_path: Path) -> None:
    login = login_of("sleep 1000", tmp_path)
    async with running(login):
        for bad in ("https://evil.example/authorize", "http://id.example.test/", "chrome://gpu"):
            login.url_arrived(bad)
            assert login.url is None
        assert login.browser_error
        login.url_arrived(URL)
        assert login.url is not None
        assert login.url.text == URL
        assert login.step is Step.WAITING_FOR_USER
        # A browser that never starts is reported, and does not end the login.
        assert await login.wait_for(lambda: "Chromium opened no page" in login.browser_error, 20)
        assert not login.has_ended
        for number in range(20):
            login.url_arrived(URL.replace("S1", f"T{number}"))
        assert login.url.state == "T5"  # ten URLs per login, including refused ones


async def test_wait_is_notified_and_limited(tmp_path: Path) -> None:
    login = login_of("sleep 1000", tmp_path)
    async with running(login):
        assert not await login.wait_for(lambda: login.url is not None, 0.01)
        waiting = asyncio.create_task(login.wait_for(lambda: login.url is not None, 20))
        await asyncio.sleep(0)
        login.url_arrived(URL)
        assert await waiting


class running:  # noqa: N801
    """Run a login in the background, and cancel it."""

    def __init__(self, login: Login) -> None:
        self._login = login

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._login.run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def is_alive(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)
