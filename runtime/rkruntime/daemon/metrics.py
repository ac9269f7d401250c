"""``/metrics``: what was counted and how the board is, in the text that Prometheus reads.

prometheus_client is imported when somebody asks: a daemon that nobody watches does without its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .board import Readings
from .figures import Distribution, Figures
from .jobs import Status

_STATES = ("loading", "ready", "failed", "reboot", "closed")
_HISTOGRAMS = {
    "first_token_s": ("time_to_first_token_seconds", "From a request's arrival to its first token."),
    "waiting_s": ("waiting_seconds", "From a request's arrival until the model began with it."),
    "answer_s": ("answer_seconds", "From a request's arrival to its last token."),
    "prefill_rate": ("prefill_tokens_per_second", "Tokens of the prompt read per second, by answer."),
    "decode_rate": ("decode_tokens_per_second", "Tokens answered per second after the first, by answer."),
}


def text(figures: Figures, status: Status, about: Mapping[str, str], readings: Readings) -> tuple[bytes, str]:
    """The text and its media type. ``about``: labels that say which model is served by what."""
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import CollectorRegistry

    class Collected:
        def collect(self) -> Iterator[Any]:
            yield from _of_daemon(figures, status, about)
            yield from _of_board(readings)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _of_daemon(figures: Figures, status: Status, about: Mapping[str, str]) -> Iterator[Any]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    yield InfoMetricFamily("rkchatd", "What is served, and by what.", dict(about))
    state = GaugeMetricFamily("rkchatd_state", "1 for the state that the daemon is in.", labels=["state"])
    for name in _STATES:
        state.add_metric([name], float(name == status.state))
    yield state
    for name, help, value in (
        ("queued", "Requests that wait.", status.queued),
        ("running", "1 while an answer is given.", status.running),
        ("context_tokens", "Tokens of context that the model is loaded with; 0 until it is.", status.context),
        ("start_time_seconds", "When the daemon began, in seconds since 1970.", figures.began),
    ):
        yield GaugeMetricFamily(f"rkchatd_{name}", help, float(value))
    for name, help, value in (
        ("worker_restarts", "How often the runtime's process was started again.", status.restarts),
        ("prompt_tokens", "Tokens of all prompts.", figures.prompt_tokens),
        ("completion_tokens", "Tokens of all answers.", figures.completion_tokens),
    ):
        yield CounterMetricFamily(f"rkchatd_{name}", help, float(value))
    requests = CounterMetricFamily("rkchatd_requests", "Requests that have ended.", labels=["path", "status"])
    for (path, code), count in sorted(figures.requests.items()):
        requests.add_metric([path, str(code)], count)
    yield requests
    refusals = CounterMetricFamily("rkchatd_refusals", "Requests refused or broken off.", labels=["reason"])
    for reason, count in sorted(figures.refusals.items()):
        refusals.add_metric([reason], count)
    yield refusals
    answers = CounterMetricFamily("rkchatd_answers", "Answers, by how they ended.", labels=["ended"])
    for ended, count in sorted(figures.answers.items()):
        answers.add_metric([ended], count)
    yield answers
    for field, (name, help) in _HISTOGRAMS.items():
        yield _histogram(name, help, getattr(figures, field))


def _histogram(name: str, help: str, values: Distribution) -> Any:
    from prometheus_client.metrics_core import HistogramMetricFamily

    return HistogramMetricFamily(f"rkchatd_{name}", help, buckets=values.buckets(), sum_value=values.sum)


def _of_board(readings: Readings) -> Iterator[Any]:
    """What could not be read is left out: 0 would be a lie."""
    from prometheus_client.metrics_core import GaugeMetricFamily

    for name, help, label, values in (
        ("board_npu_load_ratio", "Share of the time that a core of the NPU works.", "core",
         {str(core): load / 100 for core, load in enumerate(readings.npu_load)}),
        ("board_clock_hertz", "Clocks as they are.", "device", {c.name: c.hertz for c in readings.clocks}),
        ("board_clock_max_hertz", "The highest that each clock can be.", "device",
         {c.name: c.max_hertz for c in readings.clocks if c.max_hertz}),
        ("board_temperature_celsius", "Temperatures.", "zone", readings.temperatures),
        ("board_memory_bytes", "Memory: all of it, and what is available.", "kind", readings.memory),
        ("process_resident_bytes", "Memory of the daemon's processes.", "process", readings.resident),
    ):  # fmt: skip
        if values:
            family = GaugeMetricFamily(f"rkchatd_{name}", help, labels=[label])
            for key, value in values.items():
                family.add_metric([key], float(value))
            yield family
