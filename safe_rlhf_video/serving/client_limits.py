"""Limits what the requests in work take, all together and each client's: places, bytes of bodies, clips a minute."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastapi import HTTPException

from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings


@dataclass(eq=False)
class _Usage:
    """What one client has in work, and the clips that it may still have scored."""

    num_requests: int = 0
    num_bytes: int = 0
    num_clips: float = 0.0
    filled_s: float = -math.inf


class ClientLimits:
    """Counts requests, bytes and clips by client; all methods belong to the thread of the event loop.

    A client is a key, or an address where no key is asked for. Where there are several keys, one client gets
    `client_share` of the places and bytes at most.

    Args:
        now_s: a clock.
    """

    def __init__(
        self, settings: ServerSettings, metrics: ServerMetrics, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._refused = metrics.refused
        self._now_s = now_s
        self._all = _Usage()
        self._clients: dict[str, _Usage] = {}
        self.is_shared = False  # whether there are several keys

    @property
    def num_requests(self) -> int:
        """Requests in work."""
        return self._all.num_requests

    @property
    def num_bytes(self) -> int:
        """Bytes of the bodies in work."""
        return self._all.num_bytes

    def check_place(self, client: str) -> None:
        """Raises an HTTPException if there is no place for one more request of this client."""
        most = self._settings.queue_size
        if self._all.num_requests >= most:
            raise self._refuse("requests", f"{most} requests are in work already; try again", 1)
        most = self._share(most)
        if self._usage(client).num_requests >= most:
            raise self._refuse("client_requests", f"{most} requests of yours are in work already; try again", 1)

    @contextlib.contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Takes a place for a request while the block runs; raises as `check_place`."""
        self.check_place(client)
        usages = (self._all, self._usage(client))
        for usage in usages:
            usage.num_requests += 1
        try:
            yield
        finally:
            for usage in usages:
                usage.num_requests -= 1

    @contextlib.contextmanager
    def body(self, client: str) -> Iterator[BodyBytes]:
        """Counts the bytes of a body, until the block ends."""
        usages = (self._all, self._usage(client))
        body = BodyBytes(self, usages)
        try:
            yield body
        finally:
            for usage in usages:
                usage.num_bytes -= body.num_bytes

    def take_clips(self, client: str, num: int, num_taken: int = 0) -> None:
        """Takes a request's clips from those that a client may have scored in a minute.

        Args:
            num: the clips of the request.
            num_taken: how many of them were taken before.

        Raises:
            HTTPException: too many; a minute's clips come back over a minute.
        """
        most = self._settings.client_clips_per_minute
        if not most:
            return
        usage, now_s = self._usage(client), self._now_s()
        usage.num_clips = min(float(most), usage.num_clips + (now_s - usage.filled_s) * most / 60)
        usage.filled_s = now_s
        # One request may be larger than what is there, not than a minute's: it would never be taken.
        needed = min(num, most)
        if usage.num_clips < needed - num_taken:
            wait_s = math.ceil((needed - usage.num_clips) * 60 / most)
            raise self._refuse("quota", f"{most} clips a minute are scored for you; try again in {wait_s} s", wait_s)
        usage.num_clips -= num - num_taken

    def check_bytes(self, usages: tuple[_Usage, _Usage], num: int) -> None:
        """Raises an HTTPException if `num` more bytes of bodies find no room."""
        most = self._settings.bodies_mb * 1e6
        for usage, limit, reason in zip(usages, (most, self._share(most)), ("bodies", "client_bodies"), strict=True):
            if usage.num_bytes + num > limit:
                whose = "the server" if usage is self._all else "you"
                raise self._refuse(
                    reason, f"body: the requests in work of {whose} hold {limit / 1e6:g} MB already; try again", 1
                )

    def _share(self, most: float) -> int:
        return math.ceil(most * self._settings.client_share) if self.is_shared else int(most)

    def _usage(self, client: str) -> _Usage:
        return self._clients.setdefault(client, _Usage())

    def _refuse(self, reason: str, message: str, retry_s: int) -> HTTPException:
        self._refused.labels(reason).inc()
        return HTTPException(429, message, {"Retry-After": str(retry_s)})


class BodyBytes:
    """The bytes of one body; see `ClientLimits.body`."""

    def __init__(self, limits: ClientLimits, usages: tuple[_Usage, _Usage]) -> None:
        self._limits = limits
        self._usages = usages
        self.num_bytes = 0

    def check(self, num: int) -> None:
        """Raises an HTTPException if `num` more bytes find no room."""
        self._limits.check_bytes(self._usages, num)

    def add(self, num: int) -> None:
        """Counts bytes that have arrived; raises as `check`."""
        self.check(num)
        self.num_bytes += num
        for usage in self._usages:
            usage.num_bytes += num
