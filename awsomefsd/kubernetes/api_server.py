"""The API server of Kubernetes, as far as we ask it: one Secret to read and replace, and the names of the nodes.

Three kinds of request need no client library: the one for Python brings some hundreds of modules (decision 261).  Each request is a
connection of its own, with the service account's token read anew (kubelet replaces it every hour) and the server's certificate checked
against the account's CA.  Nothing is tried twice here; the caller comes again.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from awsomefsd.base.errors import ConfigError, NotFound, ProtocolError, Refused, Unavailable

CALL_S = 20.0
ANSWER_BYTES_MAX = 32 << 20
NODES_A_PAGE = 500
PAGES_MAX = 100
_PLAIN = "application/json"
# Without specification and status: a list of nodes with those is megabytes.
_NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json"


class Conflict(Unavailable):
    """Somebody else has replaced the object since it was read; read it again."""


class Place(NamedTuple):
    """How the API server is reached: its address, and the directory with `token`, `ca.crt` and `namespace` of the service account."""

    host: str
    port: int
    account: Path


def in_cluster(environ: Mapping[str, str], account: Path) -> Place:
    """Returns the place that Kubernetes tells each pod.  Raises ConfigError outside of a pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdecimal():
        raise ConfigError("this is no pod of Kubernetes (KUBERNETES_SERVICE_HOST is not set); run this command in the chart's Deployment")
    return Place(host, int(port), account)


class ApiServer:
    """The API server.  Calls block, for CALL_S at most while nothing comes; any thread may call.

    Raises Unavailable (no answer, or one that a later try may change), Conflict, NotFound, Refused (the account may not do it), and
    ProtocolError.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def namespace(self) -> str:
        """Returns the namespace of the service account."""
        return self._account_file("namespace").strip()

    def secret(self, namespace: str, name: str) -> dict[str, Any]:
        return _checked_secret(self._call("GET", _secret(namespace, name)))

    def replace_secret(self, namespace: str, name: str, secret: dict[str, Any]) -> dict[str, Any]:
        """Replaces a Secret by what was read of it and changed; returns it as it is now.

        Raises Conflict if somebody else has replaced it meanwhile.
        """
        assert secret["metadata"]["resourceVersion"], "without it, the last writer would win"
        return _checked_secret(self._call("PUT", _secret(namespace, name), secret))

    def node_names(self) -> set[str]:
        """Returns the names of all nodes of the Kubernetes cluster."""
        found: set[str] = set()
        after = ""
        for _page in range(PAGES_MAX):
            words = {"limit": str(NODES_A_PAGE)} | ({"continue": after} if after else {})
            listed = self._call("GET", f"/api/v1/nodes?{urlencode(words)}", accept=_NAMES_ONLY)
            try:
                found.update(str(one["metadata"]["name"]) for one in listed["items"])
                after = listed.get("metadata", {}).get("continue") or ""
            except (KeyError, TypeError, AttributeError) as err:
                raise ProtocolError("the API server's list of nodes is none; is that address Kubernetes?") from err
            if not after:
                return found
        raise ProtocolError(f"the API server's list of nodes has more than {PAGES_MAX} pages")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, accept: str = _PLAIN) -> dict[str, Any]:
        what = f"{method} {path.partition('?')[0]}"
        headers = {"Accept": accept, "Authorization": f"Bearer {self._token()}", "User-Agent": "awsomefsd"}
        content = None
        if body is not None:
            content, headers["Content-Type"] = json.dumps(body).encode(), _PLAIN
        connection = http.client.HTTPSConnection(self._place.host, self._place.port, timeout=CALL_S, context=self._context())
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            raw = answer.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as err:
            where = f"{self._place.host}:{self._place.port}"
            raise Unavailable(f"the API server at {where} does not answer: {err or type(err).__name__}") from err
        finally:
            connection.close()
        return _checked(what, answer.status, raw)

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self._place.account / "ca.crt"))
        except (OSError, ssl.SSLError) as err:
            raise Unavailable(f"{self._place.account}/ca.crt cannot be read: {err}; does the pod mount its service account?") from err
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # CAs of older clusters have no key identifiers; the chain is checked all the same
        return context

    def _token(self) -> str:
        held = self._account_file("token").strip()
        if not (held.isascii() and held.isprintable()):  # http.client would show it in its error
            raise Unavailable(f"what {self._place.account}/token holds is no token")
        return held

    def _account_file(self, name: str) -> str:
        path = self._place.account / name
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as err:
            reason = os.strerror(err.errno or 0) if isinstance(err, OSError) else "it is no text"
            raise Unavailable(f"{path} cannot be read: {reason}; does the pod mount its service account?") from err


def _secret(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/secrets/{quote(name, safe='')}"


def _checked_secret(said: dict[str, Any]) -> dict[str, Any]:
    described, data = said.get("metadata"), said.get("data")
    if not (isinstance(described, dict) and described.get("resourceVersion") and (data is None or isinstance(data, dict))):
        raise ProtocolError("the API server's answer is no Secret; is that address Kubernetes?")
    return said


def _checked(what: str, status: int, raw: bytes) -> dict[str, Any]:
    """Returns the object of an answer; raises what its status means.  No content is shown: it may be a Secret's."""
    if len(raw) > ANSWER_BYTES_MAX:
        raise ProtocolError(f"the API server's answer to {what} has more than {ANSWER_BYTES_MAX >> 20} MiB")
    try:
        said = json.loads(raw)
    except ValueError:
        said = None
    if status == 200 and isinstance(said, dict):
        return said
    reason = str(said.get("message", "")) if isinstance(said, dict) and status != 200 else ""
    words = f"the API server answered {what} with {status}{': ' if reason else ''}{reason[:300]}"
    if status == 404:
        raise NotFound(words)
    if status == 409:
        raise Conflict(words)
    if status in (401, 403):
        raise Refused(f"{words}; the service account lacks the right: install the chart's RBAC again")
    if status == 429 or status >= 500:
        raise Unavailable(words)
    raise ProtocolError(words)
