"""What `GET /metrics` shows, in a registry of its own so that two servers in one process do not collide."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class CacheCollector(Collector):
    """The KV caches of all models in memory, read from their engines when somebody asks."""

    def __init__(self, caches: Callable[[], dict[str, Any]]) -> None:
        self.caches = caches

    def collect(self) -> Iterator[Metric]:
        families: list[GaugeMetricFamily | CounterMetricFamily] = [
            GaugeMetricFamily("nutshell_kv_blocks", "Blocks of the KV cache", labels=["model"]),
            GaugeMetricFamily("nutshell_kv_blocks_used", "Blocks that answers hold", labels=["model"]),
            CounterMetricFamily("nutshell_prefix_hit_tokens", "Prompt tokens found in the KV cache", labels=["model"]),
            CounterMetricFamily("nutshell_preemptions", "Answers that gave their blocks to older ones", labels=["model"]),
        ]
        for model, stats in self.caches().items():
            for family, value in zip(families, stats, strict=True):
                family.add_metric([model], value)
        yield from families


class Metrics:
    def __init__(self, caches: Callable[[], dict[str, Any]]) -> None:
        self.collectors = CollectorRegistry()
        self.collectors.register(CacheCollector(caches))
        counter, gauge = partial(Counter, registry=self.collectors), partial(Gauge, registry=self.collectors)
        histogram = partial(Histogram, registry=self.collectors)
        self.requests = counter("nutshell_requests", "HTTP requests answered", ["path", "status"])
        self.request_seconds = histogram(
            "nutshell_request_seconds", "Time from request to the end of its answer", ["path"], buckets=SECONDS
        )
        self.first_token_seconds = histogram("nutshell_first_token_seconds", "Time from request to first token", buckets=SECONDS)
        self.token_seconds = histogram(
            "nutshell_token_seconds", "Mean time between the tokens of an answer", buckets=TOKEN_SECONDS
        )
        self.queue_seconds = histogram(
            "nutshell_queue_seconds", "Time from arrival to the step that began with its prompt", buckets=SECONDS
        )
        self.prompt_tokens = counter("nutshell_prompt_tokens", "Prompt tokens accepted")
        self.completion_tokens = counter("nutshell_completion_tokens", "Tokens generated")
        self.rejected = counter("nutshell_rejected", "Requests refused with 429")
        self.in_flight = gauge("nutshell_answers_in_flight", "Answers waiting or running")
        self.loaded = gauge("nutshell_models_loaded", "Models in memory")
        self.waiting = gauge("nutshell_answers_waiting", "Answers that wait for a row")

    def text(self) -> bytes:
        return generate_latest(self.collectors)
