"""The edge between gRPC and the driver: errors become a status; every call is counted, timed and logged.

Of a request only its method and the volume's id are logged: never its maps (secrets, parameters, contexts), nor a whole message.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from awsomefsd.base.errors import Error
from awsomefsd.base.metrics import Counter, Histogram, Registry
from awsomefsd.csi.errors import status_of

logger = logging.getLogger(__name__)
QUIET = frozenset({"Probe", "GetPluginInfo", "GetPluginCapabilities", "NodeGetCapabilities", "ControllerGetCapabilities"})
ID_SHOWN_CHARS = 200


class CallFigures:
    """Counts calls by method and status, and their times.  gRPC's threads call it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._counters: dict[tuple[str, str], Counter] = {}
        self._times: dict[str, Histogram] = {}

    def note(self, rpc: str, status: str, seconds: float) -> None:
        """Counts one call; `status` is a name of grpc.StatusCode."""
        if (rpc, status) not in self._counters:
            self._counters[rpc, status] = self._registry.counter(
                "awsomefsd_csi_calls_total", "Calls of the CSI driver.", rpc=rpc, status=status
            )
        if rpc not in self._times:
            self._times[rpc] = self._registry.histogram("awsomefsd_csi_call_seconds", "Duration of calls of the CSI driver.", rpc=rpc)
        self._counters[rpc, status].add()
        self._times[rpc].observe(seconds)


def rpc(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a method of a servicer that has `_figures`: counts and times the call, and turns errors into a status."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        began, status, words = time.monotonic(), "OK", ""
        try:
            return method(self, request, context)
        except Error as err:
            status, words = status_of(err), str(err)
        except Exception:
            logger.exception("csi call failed", extra={"rpc": name})
            status, words = "INTERNAL", "a bug in the driver; the daemon's log has the details"
        finally:
            self._figures.note(name, status, time.monotonic() - began)
            if status != "OK" or name not in QUIET:
                fields = {"rpc": name, "status": status, "ms": round((time.monotonic() - began) * 1000), **_what(request)}
                logger.log(
                    logging.INFO if status != "INTERNAL" else logging.WARNING,
                    "csi call",
                    extra=fields | ({"reason": words} if words else {}),
                )
        context.abort(grpc.StatusCode[status], words[:2000])

    return call


def _what(request: Any) -> dict[str, str]:
    found = getattr(request, "volume_id", "") or getattr(request, "name", "")
    return {"volume": found[:ID_SHOWN_CHARS]} if found else {}
