"""The page of figures for Prometheus: GET /metrics on a local address or a unix socket, from threads of its own.

The registry of base/metrics.py is read at every request; nothing is kept here.  A source that fails (the service is starting, the keeper is
away) loses only its own figures: awsomefsd_scrape_errors_total counts it, and the rest is still served.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from awsomefsd.base import sockets
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.metrics import Registry

logger = logging.getLogger(__name__)


class _Collector:
    """Hands the samples of a Registry to prometheus_client, grouped by family."""

    def __init__(self, figures: Registry) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for sample in self._figures.samples():
            family = sample.name
            if sample.kind == "counter":
                family = family.removesuffix("_total")
            elif sample.kind == "histogram":
                family = family.rpartition("_")[0]
            metric = families.setdefault(family, Metric(family, sample.help, sample.kind))
            metric.add_sample(sample.name, dict(sample.labels), sample.value)
        return families.values()


def render(figures: Registry) -> bytes:
    """Returns the text exposition of all figures."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures))  # type: ignore[arg-type]
    return generate_latest(registry)


class _Page(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404, "the metrics are at /metrics")
            return
        body = render(self.server.figures)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"  # a unix peer has no address, and the base class indexes into one

    def log_message(self, format: str, *args: object) -> None:
        logger.debug("metrics request", extra={"request": format % args})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, figures: Registry) -> None:
        super().__init__(("", 0), _Page, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.figures = figures

    def handle_error(self, request: object, client_address: object) -> None:
        logger.warning("metrics request failed", exc_info=True)


class Exporter:
    """The running page.

    The constructor listens, and raises ConfigError for an address it cannot have; `close` ends the page and waits for that.
    """

    def __init__(self, figures: Registry, listen: str, run_dir: Path) -> None:
        self._unix: Path | None = None
        self._listener = self._listen(listen, run_dir)
        self._server = _Server(self._listener, figures)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        if self._unix is not None:
            return f"unix:{self._unix}"
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def _listen(self, listen: str, run_dir: Path) -> socket.socket:
        if listen.startswith("unix"):
            self._unix = Path(listen.partition(":")[2] or run_dir / "metrics.sock")
            return sockets.listen_unix(self._unix, 0o600)
        host, _, port = listen.rpartition(":")
        try:
            return socket.create_server((host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as err:
            raise ConfigError(
                f"metrics.listen = {listen!r}: {os.strerror(err.errno or 0)}; choose another port or turn it off with an empty value"
            ) from err

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)
