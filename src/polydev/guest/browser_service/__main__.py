"""Entry point of `python3 -m browser_service`: run the service until SIGTERM.

The options are for tests; in a browser machine it runs without any.
"""

import argparse
import asyncio
import logging
import signal
import sys
from dataclasses import fields
from pathlib import Path

from aiohttp import web

from .api import Api
from .settings import ServiceSettings
from .url_fifo import UrlFifo


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="browser-service %(levelname)s %(message)s")
    # Its warnings about malformed requests quote them.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    try:
        asyncio.run(_serve(_settings()))
    except OSError as error:
        print(f"browser-service: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: ServiceSettings) -> None:
    api = Api(settings)
    fifo = UrlFifo(settings.url_fifo, api.url_arrived)
    runner = web.AppRunner(api.application(), access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.listen, settings.port).start()
        logging.info("listening on %s:%d", settings.listen, settings.port)
        await _until_signalled()
    finally:
        await api.close()
        await runner.cleanup()
        fifo.close()


async def _until_signalled() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()


def _settings() -> ServiceSettings:
    parser = argparse.ArgumentParser(prog="python3 -m browser_service")
    for option in fields(ServiceSettings):
        name = "--" + option.name.replace("_", "-")
        default = option.default
        kind = Path if isinstance(default, Path) else type(default)
        parser.add_argument(name, type=kind, default=default, help=f"(default: {default})")
    return ServiceSettings(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
