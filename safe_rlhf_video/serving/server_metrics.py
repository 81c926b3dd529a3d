"""What a server counts, in the text format of Prometheus. Routes are known names: nothing of a request gets in."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CLIPS = (1, 2, 4, 8, 16, 32, 64, 128)
PREFIX = "safe_rlhf_video_"


class Histogram:
    """Counts below bounds, as Prometheus wants them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {total}'
        of = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{of} {self._sum:.6f}"
        yield f"{name}_count{of} {total}"


class ServerMetrics:
    """Counters and gauges of one server; any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._seconds: dict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self._batches = Histogram(CLIPS)
        self._decoded = 0
        self._decode_failures = 0
        self._in_flight = 0

    def start_request(self) -> None:
        with self._lock:
            self._in_flight += 1

    def end_request(self, route: str, status: int, seconds: float) -> None:
        """`status` is 499 where the client left before its answer."""
        with self._lock:
            self._in_flight -= 1
            self._requests[route, status] += 1
            self._seconds[route].add(seconds)

    def add_batch(self, num_clips: int) -> None:
        with self._lock:
            self._batches.add(num_clips)

    def add_decoded(self, is_good: bool) -> None:
        with self._lock:
            self._decoded += is_good
            self._decode_failures += not is_good

    def text(self, gauges: dict[str, tuple[str, int]]) -> str:
        """All of them in Prometheus' text format; `gauges` are further ones, name -> (help, value)."""
        with self._lock:
            return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: dict[str, tuple[str, int]]) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests answered, by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'{PREFIX}requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("request_seconds", "histogram", "Seconds from the head of a request to the end of its answer.")
        for route, histogram in sorted(self._seconds.items()):
            yield from histogram.lines(f"{PREFIX}request_seconds", f'route="{route}"')
        yield from _head("batch_clips", "histogram", "Clips that the model scored at once.")
        yield from self._batches.lines(f"{PREFIX}batch_clips")
        for name, text, count in (
            ("clips_decoded_total", "Clips that were decoded.", self._decoded),
            ("decode_failures_total", "Clips that could not be decoded.", self._decode_failures),
        ):
            yield from _head(name, "counter", text)
            yield f"{PREFIX}{name} {count}"
        gauges = {"requests_in_flight": ("Requests that are not answered yet.", self._in_flight), **gauges}
        for name, (text, value) in gauges.items():
            yield from _head(name, "gauge", text)
            yield f"{PREFIX}{name} {value}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {kind}"
