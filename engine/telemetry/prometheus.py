"""The newest rows as Prometheus text, to whoever asks on this machine: nobody else can reach the port.

It is imported where a port is asked for alone: nothing else needs prometheus_client, which takes its time to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.errors import ConfigError
from engine.telemetry.follow import Sample
from engine.telemetry.metrics import Metric, meant
from engine.telemetry.names import key_placeholders, prometheus_name

_HOST = "127.0.0.1"
_Family = GaugeMetricFamily | CounterMetricFamily


class _Newest(Collector):
    """The newest row of each file, as families of samples; keys that are not declared are left out."""

    def __init__(self) -> None:
        self._rows: dict[str, Mapping[str, float]] = {}

    def put(self, sample: Sample) -> None:
        """Shows this row from now on."""
        # Replaced as a whole: a thread that answers has the old rows or the new ones.
        self._rows = {**self._rows, sample.axis: sample.values}

    def collect(self) -> Iterator[_Family]:
        """Yields a family for each declared key, with a sample for each value of its placeholders."""
        families: dict[str, _Family] = {}
        for row in self._rows.values():
            for key, value in row.items():
                if (found := meant(key)) is not None:
                    family = families.setdefault(found.metric.key, _family(found.metric))
                    family.add_metric(list(found.parts.values()), value)
        yield from families.values()


class Exposition:
    """A writer that keeps the newest row of each file and answers `GET /metrics`.

    Raises ConfigError if the port cannot be listened on; 0 picks a free one."""

    def __init__(self, port: int) -> None:
        self._newest = _Newest()
        registry = CollectorRegistry()
        registry.register(self._newest)
        try:
            self._server, self._thread = start_http_server(port, _HOST, registry)
        except OSError as error:
            raise ConfigError(f"port {port} of {_HOST}: {error.strerror}; choose another one, or 0") from error

    @property
    def url(self) -> str:
        """Where to scrape."""
        return f"http://{_HOST}:{self._server.server_port}/metrics"

    def write(self, sample: Sample) -> None:
        """Show this row from now on."""
        self._newest.put(sample)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _family(metric: Metric) -> _Family:
    kind = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
    unit = "" if metric.unit == "1" else f" ({metric.unit})"
    return kind(prometheus_name(metric), f"{metric.meaning}{unit}", labels=key_placeholders(metric))
