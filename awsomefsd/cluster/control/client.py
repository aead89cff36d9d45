"""Calls to control ports: blocking, one connection each, for nodes that join and for the daemon's threads.

There are two ways to verify the other side.  A member verifies the server's certificate against its ca.pem.  A joiner has only its token's
pin: it shakes hands with any server, asks for the authorities' certificates, and continues only if one of them has the pinned hash and has
itself signed the certificate that this very connection is encrypted with (and that one says role "node").  Before that nothing secret is
sent; a man in the middle shows another authority, or a certificate whose private key he does not have and which then never shakes hands.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from awsomefsd.base import errors
from awsomefsd.base.errors import Corrupt, Error, ProtocolError, Refused, Unavailable
from awsomefsd.base.limits import CONTROL_CALL_MS, CONTROL_HANDSHAKE_MS
from awsomefsd.base.sockets import connect_tcp
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.addresses import split_endpoint
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles

REDIRECTS_MAX = 8
_PAUSE_S = 0.2


class WrongAuthority(Refused):
    """The other side is not the cluster that the token was made for."""


def trusting_nobody() -> ssl.SSLContext:
    """Returns a TLS context for a node that joins; it trusts no authority, and the caller checks the pin itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([m.PROTOCOL])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def of_member(files: PkiFiles) -> ssl.SSLContext:
    """Returns a TLS context that verifies the other side and shows this node's certificate.  Raises OSError."""
    context = trusting_nobody()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(str(files.bundle))
    context.load_cert_chain(str(files.certificate), str(files.key))
    return context


class ControlConnection:
    """One connection to a control port; a context manager for one thread.

    The constructor blocks, for CONTROL_HANDSHAKE_MS at most at each step, and raises Unavailable if there is no connection.
    """

    def __init__(self, endpoint: str, context: ssl.SSLContext) -> None:
        self.endpoint = endpoint
        host, port = split_endpoint(endpoint)
        try:
            plain = connect_tcp(host, port, CONTROL_HANDSHAKE_MS / 1_000)
        except OSError as err:
            raise Unavailable(f"{endpoint}: {err.strerror or err}") from err
        self.address = str(plain.getsockname()[0])
        try:
            self._socket = context.wrap_socket(plain)
        except OSError as err:
            plain.close()
            raise Unavailable(f"{endpoint}: no TLS connection ({getattr(err, 'verify_message', '') or err})") from err
        self._socket.settimeout(CONTROL_CALL_MS / 1_000)

    def __enter__(self) -> ControlConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    @property
    def certificate(self) -> bytes:
        """The certificate of the other side, DER; it has proved to have the key."""
        return self._socket.getpeercert(binary_form=True) or b""

    def call(self, body: m.ControlMessage) -> Any:
        """Sends a call and returns its answer; blocks, for CONTROL_CALL_MS at most at each read and write.

        Raises the error that an answer No names (Refused for an unknown one), Unavailable if the connection breaks, ProtocolError.
        """
        try:
            self._socket.sendall(m.frame(body))
            answer = m.decode_answer(self._exactly(m.body_bytes(self._exactly(m.HEAD_BYTES))))
        except OSError as err:
            raise Unavailable(f"{self.endpoint}: the connection broke ({err})") from err
        if isinstance(answer, m.No):
            kind = getattr(errors, answer.error, Refused)
            if not (isinstance(kind, type) and issubclass(kind, Error)) or kind is errors.FsError:
                kind = Refused
            raise kind(answer.words)
        return answer

    def _exactly(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            part = self._socket.recv(count - len(got))
            if not part:
                raise Unavailable(f"{self.endpoint}: the connection was closed")
            got += part
        return bytes(got)


def check_pin(connection: ControlConnection, greeting: m.Greeting, pin: bytes, cluster: str) -> None:
    """Raises WrongAuthority unless the connection's certificate is a node's, and signed by the authority with that SHA-256."""
    place = connection.endpoint
    try:
        shown = ca.load_der(connection.certificate)
        pinned = next((found for found in ca.load_bundle(greeting.bundle) if bytes.fromhex(ca.id_of(found)) == pin), None)
        if pinned is not None and ca.issuer_of(shown, [pinned]) and ca.identity(shown).role == "node":
            if not ca.in_time(shown):
                held = f"{shown.not_valid_before_utc:%Y-%m-%d %H:%M} to {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
                clock = f"this machine's clock says {ca.now():%Y-%m-%d %H:%M}"
                raise WrongAuthority(f"{place} has a certificate from {held}, and {clock}; set the clock.  The token's secret was not sent")
            if greeting.cluster != cluster:
                raise WrongAuthority(f"{place} is of cluster {greeting.cluster}, the token is for {cluster}; nothing was sent")
            return
    except Corrupt as err:
        raise WrongAuthority(f"{place} shows certificates that cannot be read ({err}); the token's secret was not sent") from err
    if greeting.cluster != cluster:
        raise WrongAuthority(
            f"{place} is of cluster {greeting.cluster}, the token is for cluster {cluster}; check the token and the "
            "endpoint.  The token's secret was not sent"
        )
    raise WrongAuthority(
        f"{place} does not have the certificate authority that the token names: another machine answers in its place, or the "
        "authority was changed after the token was made.  The token's secret was not sent.  Make a new token with awsomefsd token create"
    )


class _Nobody(Exception):
    """No leader can be reached this way."""


def ask_leader(
    endpoints: Iterable[str],
    talk: Callable[[str], Any],
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """Returns the result of `talk` at the first endpoint that answers; follows redirects until a node leads or the time is up.

    Blocks.  Raises Unavailable when the time is up, and at once the error of an answer No: another node would answer the same.
    """
    given = list(endpoints)
    if not given:
        raise Unavailable("no other node of the cluster is known")
    until = clock() + deadline_s
    problems: dict[str, str] = {}
    while True:
        for endpoint in given:
            with contextlib.suppress(_Nobody):
                return _follow(endpoint, talk, problems)
        if clock() >= until:
            reasons = "; ".join(problems.values()) or "the cluster has no leader now"
            raise Unavailable(
                f"no node that leads the cluster could be asked ({reasons}); check that the nodes run and that the "
                "network reaches them, then try again"
            )
        sleep(_PAUSE_S)


def _follow(endpoint: str, talk: Callable[[str], Any], problems: dict[str, str]) -> Any:
    """Returns the answer of the leader that this endpoint leads to.  Raises _Nobody if there is none."""
    for _ in range(REDIRECTS_MAX):
        try:
            answer = talk(endpoint)
        except (Unavailable, ProtocolError) as err:
            problems[endpoint] = str(err)
            break
        if not isinstance(answer, m.Redirect):
            return answer
        problems[endpoint] = f"{endpoint}: does not lead"
        if answer.control in ("", endpoint):
            break
        endpoint = answer.control
    raise _Nobody


def call_leader(files: PkiFiles, endpoints: Iterable[str], body: m.ControlMessage, deadline_s: float) -> Any:
    """Makes one call as a member of the cluster; returns the answer.  Blocks and raises as `ask_leader`."""

    def talk(endpoint: str) -> Any:
        with ControlConnection(endpoint, of_member(files)) as connection:
            if ca.identity(connection.certificate).role != "node":
                raise Unavailable(f"{endpoint}: is not a node")
            return connection.call(body)

    return ask_leader(endpoints, talk, deadline_s)
