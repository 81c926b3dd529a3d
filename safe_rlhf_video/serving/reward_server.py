"""Starts and ends the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.serving.access_log import AccessLog, RequestIdFilter
from safe_rlhf_video.serving.app import build_app
from safe_rlhf_video.serving.gate import Gate
from safe_rlhf_video.serving.keys import KeyRing
from safe_rlhf_video.serving.protocol import MAX_CONNECTIONS, Connections, Protocol
from safe_rlhf_video.serving.service import Service
from safe_rlhf_video.serving.settings import ServerSettings

KEEP_ALIVE_S = 15
_log = logging.getLogger(__name__)
BACKLOG = 1024


def serve(settings: ServerSettings) -> None:
    """Loads the models and answers requests until SIGTERM or SIGINT; then finishes those in work, and returns.

    Raises:
        CheckpointError, ConfigError: as `Scorer.from_pretrained`, or the address cannot be used.
    """
    _allow_open_files(MAX_CONNECTIONS + 200)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter())
    # Clients' mistakes are answered, not logged: they could fill the log, and write into it.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    keys, log = KeyRing(settings), AccessLog(settings.access_log)
    _warn(settings, keys)
    listening = _listen(settings)  # before models are loaded, so that a port in use is reported at once
    scorer = Scorer.from_pretrained(*settings.model, device=settings.device, backbone=settings.backbone, workers=1)
    asyncio.run(_serve(scorer, settings, keys, log, listening))


async def _serve(
    scorer: Scorer, settings: ServerSettings, keys: KeyRing, log: AccessLog, listening: socket.socket
) -> None:
    service = Service(scorer, settings)
    try:
        app = build_app(service)
        service.metrics.access_log_lost.set_function(lambda: log.num_lost)
        _watch_keys(keys, service)
        routes = frozenset(path for route in app.routes if "{" not in (path := getattr(route, "path", "{")))
        config = uvicorn.Config(
            Gate(app, settings, keys, service.metrics, log, routes),
            http=cast(Any, partial(Protocol, connections=Connections(service.metrics))),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            # All requests are answered by then; this is for clients that do not read their answer.
            timeout_graceful_shutdown=int(settings.shutdown_s) + 5,
        )
        listening.listen(BACKLOG)  # requests may follow the line below at once
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        key = "asks for a key" if keys.is_needed else "asks for no key: only this machine reaches it"
        heads = ", ".join(scorer.heads)
        if scorer.decided_by != "reward and cost":
            heads += f" (choices by {scorer.decided_by})"
        # The garbage collector would walk through all that is loaded again and again, a tenth of the loop's time.
        gc.collect()
        gc.freeze()
        print(f"http://{shown}:{port}/ scores with {heads} on {scorer.device}, {key}; Ctrl-C ends it", flush=True)
        await _Server(config, service.stop).serve([listening])
    finally:
        service.close()
    print("ended", flush=True)


def _warn(settings: ServerSettings, keys: KeyRing) -> None:
    """Warns of what makes a server that others can use less safe."""
    if os.geteuid() == 0 and (settings.asks_for_key or not settings.is_loopback):
        _log.warning("runs as root, which no part of it needs: start it as a user of its own")
    if keys.is_exposed:
        _log.warning("api_key_file: all users of this machine can read or write it; chmod 600 it")


def _watch_keys(keys: KeyRing, service: Service) -> None:
    """Tells the service whether clients share it, and reads a key file again at SIGHUP."""

    def reload() -> None:
        try:
            keys.reload()
        except ConfigError as error:
            _log.error("%s; the keys are those from before", error)
        else:
            _log.warning("api_key_file: read again, %d keys", len(keys))
        service.limits.is_shared = len(keys) > 1

    service.limits.is_shared = len(keys) > 1
    if service.settings.api_key_file is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


class _Server(uvicorn.Server):
    """Uvicorn's server, but it returns after a signal, and calls `on_stop` at once."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._on_stop)


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{settings.host} port {settings.port} cannot be used ({error}); give another --host or --port, 0 for any"
        ) from error
    return listening


def _allow_open_files(num: int) -> None:
    """Raises the limit of open files to `num`, or as far as the system allows: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        wanted = num if hard == resource.RLIM_INFINITY else min(num, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
