"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("ivl3_requests", "Requests by status.", ["status"], registry=registry)
        self.running = Gauge("ivl3_requests_running", "Requests that were taken and have not ended.", registry=registry)
        self.prompt_tokens = Counter("ivl3_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.reused_tokens = Counter("ivl3_prompt_tokens_reused", "Of these in the cache.", registry=registry)
        self.answer_tokens = Counter("ivl3_answer_tokens", "Tokens of answers.", registry=registry)
        self.first = Histogram("ivl3_first_piece_seconds", "Until the first text.", registry=registry, buckets=SECONDS)
        self.whole = Histogram("ivl3_request_seconds", "Until the end.", registry=registry, buckets=SECONDS)

    def text(self) -> bytes:
        """In the text format that Prometheus reads."""
        return generate_latest(self._registry)
