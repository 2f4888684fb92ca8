"""Paths in a browser machine, and limits of a login.

The defaults match docs/machines.md; the command line can change them.
"""

from dataclasses import dataclass
from pathlib import Path

# Fixed limits.
BODY_BYTES = 16 * 1024
LONG_POLL_S = 30.0
URL_CHARACTERS = 4096
URLS_PER_LOGIN = 10
OUTPUT_BYTES = 64 * 1024
REPORTED_OUTPUT_BYTES = 2 * 1024
CALLBACK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ServiceSettings:
    listen: str = "127.0.0.1"
    port: int = 8080
    token_file: Path = Path("/run/polydev/token")
    environment_file: Path = Path("/run/polydev/environment")
    url_fifo: Path = Path("/run/polydev/browser-url")
    providers: Path = Path("/usr/share/polydev/providers")
    home: Path = Path("/root")
    debugging_port: int = 9222
    browser_limit_s: float = 180.0
    login_limit_s: float = 20 * 60.0
    open_url: Path = Path(__file__).parent / "open-url"
    commands: Path = Path(__file__).parent / "commands"
    """First folder in the CLI's PATH: replaces programs that open a browser."""

    def environment(self) -> dict[str, str]:
        """Environment from the host for every CLI process: proxy and certificates."""
        try:
            lines = self.environment_file.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def in_home(self, path: str) -> Path:
        """Convert a provider's path under /root to this service's home."""
        return self.home / Path(path).relative_to("/root")
