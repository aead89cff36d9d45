"""The way of a fresh machine into a cluster: `awsomefsd join TOKEN`, and the daemon that finds a token in its configuration.

Order: the pending UUID and key are written, the cluster is asked, ca.pem and node.pem and endpoints.json are written, and node.json last.
A crash before it leaves a machine that may ask again, as the same node and without using the token up a second time; after it the machine
is a node.  A node whose certificate has expired joins again in the same way, as the same node, with a new token.
"""

from __future__ import annotations

import sys
from pathlib import Path

from awsomefsd import __version__
from awsomefsd.base import identity, levels
from awsomefsd.base.errors import AlreadyExists, Corrupt, NotFound, Refused
from awsomefsd.base.limits import JOIN_MS, TOKEN_BYTES_MAX
from awsomefsd.cluster import messages as m
from awsomefsd.cluster.addresses import described, split_endpoint
from awsomefsd.cluster.control.client import ControlConnection, WrongAuthority, ask_leader, check_pin, trusting_nobody
from awsomefsd.cluster.founding.founder import node_name
from awsomefsd.cluster.pki import ca, token
from awsomefsd.cluster.pki.issued import accept
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.cluster.pki.token_text import TokenError
from awsomefsd.config.settings import Settings, parse_labels


def read_token(argument: str | None, settings: Settings) -> str:
    """Returns the token of the command line, of standard input ("-"), or of the configuration.  Raises TokenError if there is none."""
    given = sys.stdin.read(TOKEN_BYTES_MAX + 1) if argument == "-" else argument or settings.token.get_secret_value()
    text = given.strip()
    if not text:
        raise TokenError(
            "no token was given: give it on standard input (awsomefsd join -), by AWSOMEFSD_TOKEN_FILE, or as the argument; "
            "`awsomefsd token create` on a node of the cluster makes one"
        )
    return text


def join(settings: Settings, text: str, *, deadline_s: float = JOIN_MS / 1_000) -> identity.Node:
    """Makes this machine a node of the token's cluster; returns its identity.  Blocks for `deadline_s` at most.

    Raises TokenError, Refused, WrongAuthority, Unavailable, AlreadyExists.
    """
    wanted = token.parse(text)
    identity.make_directory(settings.state_dir, 0o700)
    with identity.lock_to_enter(settings.state_dir, "join"):
        existing = _existing(settings.state_dir, wanted)
        files = PkiFiles(settings.state_dir)
        uuid, key = (existing.node, files.own_key()) if existing else files.pending()
        joined = _ask(settings, wanted, uuid, ca.make_request(key, uuid), deadline_s)
        made = accept(settings, files, wanted.cluster_uuid, uuid, wanted.role, joined)
        if existing is None:
            identity.write(settings.state_dir, made)
        files.joined()
    return existing or made


def _existing(state_dir: Path, wanted: token.JoinToken) -> identity.Node | None:
    """Returns the node that this machine is already, if it may join again: its certificate has expired."""
    try:
        found = identity.load(state_dir)
    except NotFound:
        return None
    if found.cluster != wanted.cluster_uuid:
        raise AlreadyExists(
            f"{state_dir} belongs to node {found.node} of another cluster, {found.cluster}; run `awsomefsd leave "
            "--purge` to leave it, or choose another --state-dir"
        )
    try:
        expired = ca.identity(PkiFiles(state_dir).read_certificate()).ends <= ca.now()
    except (NotFound, Corrupt):
        expired = True
    if not expired:
        raise AlreadyExists(f"this machine is node {found.node} of that cluster already; start it with `awsomefsd run`")
    return found


def _ask(settings: Settings, wanted: token.JoinToken, uuid: str, request: bytes, deadline_s: float) -> m.Joined:
    def talk(endpoint: str) -> m.Answer:
        with ControlConnection(endpoint, trusting_nobody()) as connection:
            greeting = connection.call(m.Greet(m.VERSION))
            if not isinstance(greeting, m.Greeting):
                raise WrongAuthority(
                    f"{endpoint} does not answer as a node of a cluster; check the endpoint.  The token's secret was not sent"
                )
            check_pin(connection, greeting, wanted.pin, wanted.cluster_uuid)
            control, metadata = described(settings, split_endpoint(endpoint)[0] if not settings.cluster.advertise else "")
            answer: m.Answer = connection.call(
                m.Join(wanted.id, wanted.secret, uuid, node_name(settings), request, control, metadata,
                       parse_labels(settings.cluster.labels), __version__, levels.supported())
            )  # fmt: skip
            return answer

    answer = ask_leader(wanted.endpoints, talk, deadline_s)
    if not isinstance(answer, m.Joined):
        raise Refused(f"the cluster answered the join with {type(answer).__name__}; upgrade this node or the cluster")
    return answer
