"""What `GET /metrics` shows, in a registry of its own so that two servers in one process do not collide."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("nutshell_requests", "HTTP requests answered", ["path", "status"], registry=self.registry)
        self.request_seconds = Histogram(
            "nutshell_request_seconds", "Time from request to the end of its answer", ["path"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "nutshell_first_token_seconds", "Time from request to first token", buckets=SECONDS, registry=self.registry
        )
        self.token_seconds = Histogram(
            "nutshell_token_seconds", "Mean time between the tokens of an answer", buckets=TOKEN_SECONDS, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "nutshell_queue_seconds", "Time from arrival to the step that began with its prompt",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("nutshell_prompt_tokens", "Prompt tokens accepted", registry=self.registry)
        self.completion_tokens = Counter("nutshell_completion_tokens", "Tokens generated", registry=self.registry)
        self.rejected = Counter("nutshell_rejected", "Requests refused with 429", registry=self.registry)
        self.in_flight = Gauge("nutshell_answers_in_flight", "Answers waiting or running", registry=self.registry)
        self.loaded = Gauge("nutshell_models_loaded", "Models in memory", registry=self.registry)
        self.waiting = Gauge("nutshell_answers_waiting", "Answers that wait for a row", registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
