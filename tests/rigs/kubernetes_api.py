"""A stand-in for the API server of Kubernetes: TLS, a service account's token, the rights that the chart gives it, versions of objects.

It plays what the real one does for Secrets and Nodes: 401 without the account's token, 403 without the right, 404, 409 for a replacement of
what has changed meanwhile, lists in pages, and names only where the client asks for them.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trustme
import yaml

MANIFESTS = Path(__file__).parents[2] / "packaging" / "k8s" / "awsomefs.yaml"
ACCOUNT = "awsomefs-node-keeper"
NAMESPACE = "awsomefs"
SECRET = "awsomefs-join-token"
_NAMES_ONLY = "as=PartialObjectMetadataList"


def rights_of(account: str = ACCOUNT) -> list[dict[str, Any]]:
    """The rules of the roles that the chart binds to a service account; those of a Role have its namespace."""
    made = [one for one in yaml.safe_load_all(MANIFESTS.read_text()) if one]
    bound = [one for one in made if one["kind"].endswith("RoleBinding") and any(who["name"] == account for who in one["subjects"])]
    wanted = {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bound}
    roles = [one for one in made if (one["kind"], one["metadata"]["name"]) in wanted]
    return [{**rule, "namespace": role["metadata"].get("namespace", "")} for role in roles for rule in role["rules"]]


class KubernetesApi:
    """The server, on loopback; a context manager.  Attributes may be changed while it runs, under `lock`."""

    def __init__(self, directory: Path, rights: list[dict[str, Any]] | None = None) -> None:
        self.account = directory
        self.lock = threading.Lock()
        self.rights = rights_of() if rights is None else rights
        self.secrets: dict[str, dict[str, Any]] = {SECRET: _object(SECRET)}
        self.nodes: set[str] = set()
        self.away = False
        self.asked: list[tuple[str, str, int]] = []
        self.before_put: Callable[[], None] = lambda: None  # without the lock
        self.token = "account-1"
        self._version = 1
        authority = trustme.CA()
        directory.mkdir(parents=True, exist_ok=True)
        authority.cert_pem.write_to_path(directory / "ca.crt")
        (directory / "namespace").write_text(NAMESPACE)
        self.rotate(self.token)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> KubernetesApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def rotate(self, token: str) -> None:
        """As kubelet does every hour."""
        self.token = token
        (self.account / "token").write_text(token + "\n")

    def value(self, key: str, name: str = SECRET) -> str:
        with self.lock:
            held = self.secrets.get(name, {}).get("data", {}).get(key, "")
        return base64.b64decode(held).decode()

    def put_value(self, key: str, text: str, name: str = SECRET) -> None:
        """As somebody else with kubectl."""
        with self.lock:
            secret = self.secrets.setdefault(name, _object(name))
            secret.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()
            self._touch(secret)

    def _touch(self, made: dict[str, Any]) -> None:
        self._version += 1
        made["metadata"]["resourceVersion"] = str(self._version)

    # --- requests ---------------------------------------------------------------------------------------------------------------
    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            self.before_put()
        place = urlsplit(target)
        with self.lock:
            if self.away:
                return _status(503, "the server is currently unable to handle the request")
            if headers.get("Authorization") != f"Bearer {self.token}":
                return _status(401, "Unauthorized")
            match place.path.strip("/").split("/"):
                case ["api", "v1", "nodes"] if method == "GET":
                    return self._list(parse_qs(place.query), headers) if self._may("list", "nodes") else _forbidden("list nodes")
                case ["api", "v1", "namespaces", namespace, "secrets", name] if method in ("GET", "PUT"):
                    verb = {"GET": "get", "PUT": "update"}[method]
                    if not self._may(verb, "secrets", name, namespace):
                        return _forbidden(f"{verb} secrets {name} in {namespace}")
                    return self._secret(name) if method == "GET" else self._replace(name, json.loads(body))
        return _status(404, "the server could not find the requested resource")

    def _may(self, verb: str, resource: str, name: str = "", namespace: str = "") -> bool:
        return any(
            verb in rule["verbs"] and resource in rule["resources"] and rule["namespace"] in ("", namespace)
            and name in rule.get("resourceNames", [name])
            for rule in self.rights
        )  # fmt: skip

    def _list(self, query: dict[str, list[str]], headers: Any) -> tuple[int, Any]:
        names, limit, after = sorted(self.nodes), int(query["limit"][0]), query.get("continue", [""])[0]
        page = [name for name in names if name > after][:limit]
        more = page[-1] if page and page[-1] != names[-1] else ""
        spec = {} if _NAMES_ONLY in headers.get("Accept", "") else {"spec": {}, "status": {}}
        return 200, {"metadata": {"continue": more}, "items": [{"metadata": {"name": name}} | spec for name in page]}

    def _secret(self, name: str) -> tuple[int, Any]:
        return (200, self.secrets[name]) if name in self.secrets else _status(404, f'secrets "{name}" not found')

    def _replace(self, name: str, made: dict[str, Any]) -> tuple[int, Any]:
        if name not in self.secrets:
            return _status(404, f'secrets "{name}" not found')
        if made["metadata"]["resourceVersion"] != self.secrets[name]["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified; please apply your changes to the latest version and try again")
        self._touch(made)
        self.secrets[name] = made
        return 200, made


def _object(name: str) -> dict[str, Any]:
    """As the chart makes it: without data."""
    metadata = {"name": name, "namespace": NAMESPACE, "resourceVersion": "1", "labels": {"app.kubernetes.io/name": "awsomefs"}}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}


def _status(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "status": "Failure", "code": code, "message": message}


def _forbidden(what: str) -> tuple[int, Any]:
    return _status(403, f"forbidden: {ACCOUNT} cannot {what}")


def _handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, said = api.answer(self.command, self.path, self.headers, body)
            api.asked.append((self.command, self.path, code))
            raw = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
