"""Counters of the server in Prometheus' text format (version 0.0.4), without a library. Written on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass
class Counter:
    """A number that grows, one for each combination of labels."""

    name: str
    help: str
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, amount: float = 1, /, **labels: str) -> None:
        """Add to the number of these labels."""
        key = tuple(sorted(labels.items()))
        self.values[key] = self.values.get(key, 0) + amount

    def lines(self) -> Iterable[str]:
        """As Prometheus reads it."""
        yield from _head(self.name, self.help, "counter")
        for labels, value in sorted(self.values.items()) or [((), 0)]:
            yield f"{self.name}{_labels(labels)} {_number(value)}"


@dataclass
class Gauge:
    """A number that is read when it is asked for."""

    name: str
    help: str
    read: Callable[[], Mapping[Labels, float] | float]

    def lines(self) -> Iterable[str]:
        """As Prometheus reads it."""
        yield from _head(self.name, self.help, "gauge")
        values = self.read()
        for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
            yield f"{self.name}{_labels(labels)} {_number(value)}"


class Histogram:
    """How values are distributed: how many are at most each bound, their sum and their count."""

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self._series: dict[Labels, tuple[list[int], list[float]]] = {}

    def add(self, value: float, /, **labels: str) -> None:
        """Add a value to the series of these labels."""
        key = tuple(sorted(labels.items()))
        counts, total = self._series.setdefault(key, ([0] * (len(self.bounds) + 1), [0.0]))
        place = next((index for index, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        counts[place] += 1
        total[0] += value

    def lines(self) -> Iterable[str]:
        """As Prometheus reads it: buckets are cumulative."""
        yield from _head(self.name, self.help, "histogram")
        for labels, (counts, total) in sorted(self._series.items()):
            seen = 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                seen += count
                yield f"{self.name}_bucket{_labels((*labels, ('le', bound)))} {seen}"
            yield f"{self.name}_sum{_labels(labels)} {_number(total[0])}"
            yield f"{self.name}_count{_labels(labels)} {seen}"


class Metrics:
    """All of them. Labels have few values: endpoints, statuses and kinds of errors, never what a client sent."""

    def __init__(self) -> None:
        self.requests = Counter("finetune_requests_total", "Requests by endpoint and status.")
        self.errors = Counter("finetune_errors_total", "Refused requests and rows without an answer, by kind.")
        self.rows = Counter("finetune_rows_total", "Rows that were answered.")
        self.tokens = Counter("finetune_tokens_total", "Tokens of prompts and of replies.")
        self.restarts = Counter("finetune_replica_restarts_total", "Replicas that ended and were started again.")
        self.seconds = Histogram("finetune_request_seconds", "From a request's head to the end of its answer.", SECONDS)
        self.batch_rows = Histogram("finetune_batch_rows", "Rows in one forward pass.", ROWS)
        self.batch_seconds = Histogram("finetune_batch_seconds", "Seconds of one batch.", SECONDS)
        self.gauges: list[Gauge] = []

    def gauge(self, name: str, help: str, read: Callable[[], Mapping[Labels, float] | float]) -> None:
        """Add a number that is read when the metrics are asked for."""
        self.gauges.append(Gauge(name, help, read))

    def text(self) -> str:
        """Everything, in Prometheus' text format."""
        counters = (self.requests, self.errors, self.rows, self.tokens, self.restarts)
        histograms = (self.seconds, self.batch_rows, self.batch_seconds)
        series: list[Counter | Histogram | Gauge] = [*counters, *histograms, *self.gauges]
        return "\n".join(line for one in series for line in one.lines()) + "\n"


def _head(name: str, help: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"


def _labels(labels: Labels) -> str:
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels)
    text = ",".join(f'{name}="{value}"' for name, value in escaped)
    return f"{{{text}}}" if text else ""


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
