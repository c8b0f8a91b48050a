"""The newest rows as Prometheus text, to whoever asks on this machine: nobody else can reach the port."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from engine.errors import ConfigError
from engine.telemetry.follow import Sample
from engine.telemetry.metrics import Metric
from engine.telemetry.names import meant, prometheus_name

_HOST = "127.0.0.1"
_IDLE_S = 10.0


class Exposition:
    """A writer that keeps the newest row of each file and answers `GET /metrics`.

    Raises ConfigError if the port cannot be listened on; 0 picks a free one."""

    def __init__(self, port: int) -> None:
        self._newest: dict[str, Mapping[str, float]] = {}
        try:
            self._server = ThreadingHTTPServer((_HOST, port), _handler(self.text))
        except OSError as error:
            raise ConfigError(f"port {port} of {_HOST}: {error.strerror}; choose another one, or 0") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="prometheus", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where to scrape."""
        return f"http://{_HOST}:{self._server.server_port}/metrics"

    def text(self) -> str:
        """What a scrape gets now."""
        rows = self._newest
        return exposition({key: value for row in rows.values() for key, value in row.items()})

    def write(self, sample: Sample) -> None:
        """Show this row from now on."""
        # Replaced as a whole: a thread that answers has the old rows or the new ones.
        self._newest = {**self._newest, sample.axis: sample.values}

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def exposition(values: Mapping[str, float]) -> str:
    """Text format 0.0.4; the samples of a family stand together. Keys that are not in the table are left out."""
    families: dict[Metric, list[str]] = {}
    for key, value in values.items():
        if (found := meant(key)) is not None:
            labels = ",".join(f'{name}="{_quoted(text)}"' for name, text in found.parts.items())
            families.setdefault(found.metric, []).append(f"{{{labels}}} {value!r}" if labels else f" {value!r}")
    return "".join(_family(metric, samples) for metric, samples in families.items())


def _family(metric: Metric, samples: Iterable[str]) -> str:
    name = prometheus_name(metric)
    unit = "" if metric.unit == "1" else f" ({metric.unit})"
    described = f"{metric.meaning}{unit}".replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {described}", f"# TYPE {name} {'gauge' if metric.kind == 'gauge' else 'counter'}"]
    return "".join(f"{line}\n" for line in (*lines, *(f"{name}{sample}" for sample in samples)))


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _IDLE_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND, "the metrics are at /metrics")
                return
            body = text().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of the base class
            """Nothing: a scrape every few seconds is no news."""

    return Handler
