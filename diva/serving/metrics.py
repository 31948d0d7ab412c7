"""The server's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The metrics that /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "diva_requests", "Chat completions by HTTP status", ["status"], registry=self.registry
        )
        self.tokens = Counter("diva_tokens", "Tokens of ended answers", ["kind"], registry=self.registry)
        self.active = Gauge(
            "diva_active_requests", "Requests that wait or are answered", registry=self.registry
        )
        self.seconds = Histogram(
            "diva_request_seconds",
            "From a request's first byte to its answer's last",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "diva_batch_rows",
            "Answers that get a token in the same step",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
