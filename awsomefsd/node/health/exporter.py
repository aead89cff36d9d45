"""The page of figures for Prometheus: GET /metrics on a local address or a unix socket, from threads of its own.  Probes are there, too.

The registry of base/metrics.py is read at every request; nothing is kept here.  A source that fails (the service is starting, the keeper is
away) loses only its own figures: awsomefsd_scrape_errors_total counts it, and the rest is still served.

Whoever reaches the address may ask, so what that costs is bounded (bounded_http.py).  Figures are gathered by one thread at a time, since
the metadata thread answers for them.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from awsomefsd.base import sockets
from awsomefsd.base.errors import ConfigError, Error
from awsomefsd.base.metrics import Registry
from awsomefsd.config import ports
from awsomefsd.node.health.bounded_http import BoundedHttpServer
from awsomefsd.node.health.probes import Probes

logger = logging.getLogger(__name__)
PAGES_MAX = 4
PAGE_S = 10.0


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
    timeout = PAGE_S  # of one read or write; the server sees to the whole

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._tell(self.server.probes.alive())
        elif path == "/readyz":
            with self.server.gathering:
                trouble = self._not_ready()
            self._tell(trouble)
        elif path in ("/", "/metrics"):
            with self.server.gathering:
                body = render(self.server.figures)
            self._send(200, CONTENT_TYPE_LATEST, body)
        else:
            self.send_error(404, "the metrics are at /metrics, probes at /healthz and /readyz")

    def _not_ready(self) -> str:
        try:
            return self.server.probes.ready()
        except Error as err:
            return str(err)

    def _tell(self, trouble: str) -> None:
        words = f"{trouble}\n" if trouble else "ok\n"
        self._send(503 if trouble else 200, "text/plain; charset=utf-8", words.encode(errors="replace"))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"  # a unix peer has no address, and the base class indexes into one

    def log_message(self, format: str, *args: object) -> None:
        logger.debug("metrics request", extra={"request": format % args})


class _Server(BoundedHttpServer):
    def __init__(self, listener: socket.socket, figures: Registry, probes: Probes) -> None:
        super().__init__(listener, _Page, PAGES_MAX, PAGE_S)
        self.figures = figures
        self.probes = probes
        self.gathering = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        logger.info("metrics request failed", exc_info=True)


class Exporter:
    """The running page.

    The constructor listens, and raises ConfigError for an address it cannot have; `close` ends the page and waits for that.
    """

    def __init__(self, figures: Registry, listen: str, run_dir: Path, probes: Probes) -> None:
        self._unix: Path | None = None
        self._listener = self._listen(listen, run_dir)
        self._server = _Server(self._listener, figures, probes)
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
            taken = ports.taken("metrics.listen", listen, err)
            raise ConfigError(f"{taken}; choose another port or turn it off with an empty value") from err

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)
