"""Counts what a server does, for Prometheus. Routes are known names: nothing of a request gets in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CLIPS = (1, 2, 4, 8, 16, 32, 64, 128)
PREFIX = "safe_rlhf_video"


class ServerMetrics:
    """Counters, histograms and gauges of one server; any thread may add to them."""

    def __init__(self) -> None:
        disable_created_metrics()  # series of their own that nobody asked for
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "requests", "Requests answered, by route and status.", ("route", "status"), PREFIX, registry=registry
        )
        self.request_seconds = Histogram(
            "request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ("route",),
            PREFIX,
            registry=registry,
            buckets=SECONDS,
        )
        self.batch_clips = Histogram(
            "batch_clips", "Clips that the model scored at once.", (), PREFIX, registry=registry, buckets=CLIPS
        )
        self.client_requests = Counter(
            "client_requests", "Requests that showed a key, by its name.", ("client",), PREFIX, registry=registry
        )
        self.access_log_lost = Gauge(
            "access_log_lost", "Lines of the access log that were not written.", (), PREFIX, registry=registry
        )
        self.model_restarts = Counter(
            "model_restarts", "Times that the model's thread failed and began anew.", (), PREFIX, registry=registry
        )
        self.decoded = Counter("clips_decoded", "Clips that were decoded.", (), PREFIX, registry=registry)
        self.decode_failures = Counter(
            "decode_failures", "Clips that could not be decoded.", (), PREFIX, registry=registry
        )
        self.decoder_failures = Counter(
            "decoder_failures",
            "Clips whose decoding process did not start or was killed.",
            (),
            PREFIX,
            registry=registry,
        )
        self.refused = Counter(
            "refused", "Requests and connections beyond a limit, by limit.", ("limit",), PREFIX, registry=registry
        )
        self.body_bytes = Gauge("body_bytes", "Bytes of the bodies in work.", (), PREFIX, registry=registry)
        self.in_flight = Gauge(
            "requests_in_flight", "Requests that are not answered yet.", (), PREFIX, registry=registry
        )
        self.queue_requests = Gauge(
            "queue_requests", "Requests that were taken and are not answered yet.", (), PREFIX, registry=registry
        )
        self.queue_clips = Gauge("queue_clips", "Decoded clips that wait for the model.", (), PREFIX, registry=registry)

    def text(self) -> bytes:
        """All of them in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
