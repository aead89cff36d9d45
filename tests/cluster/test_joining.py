"""Real processes on loopback: init, tokens, joins good and bad, removal; and no secret anywhere that somebody might read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.cluster.control.client import ControlConnection, of_member
from awsomefsd.cluster.messages import RenewCertificate
from awsomefsd.cluster.pki import ca, token
from awsomefsd.cluster.pki.pki_files import PkiFiles
from buildtools import nodes
from tests.rigs.voter_daemons import awaited, free_ports

WAIT_S = 60


class Machine:
    """A state directory, its settings, and at most one daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        directory.mkdir()
        control, metadata = free_ports(2)
        self.endpoint = f"127.0.0.1:{control}"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | {
            "AWSOMEFSD_STATE_DIR": str(self.state),
            "AWSOMEFSD_RUN_DIR": str(directory / "run"),
            "AWSOMEFSD_CLUSTER_LISTEN": self.endpoint,
            "AWSOMEFSD_METADATA_LISTEN": f"127.0.0.1:{metadata}",
            "AWSOMEFSD_CLUSTER_NAME": directory.name,
            "AWSOMEFSD_CLUSTER_DISCOVERY": "false",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def cli(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*nodes.program(), *words], env=self.environ | environ, input=stdin, capture_output=True, text=True, timeout=WAIT_S, check=False
        )

    def ask(self, *words: str, **keywords: str) -> Any:
        done = self.cli(*words, "-o", "json", **keywords)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def launch(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*nodes.program(), "run"], env=self.environ, stdout=log, stderr=log)

    def start(self) -> None:
        self.launch()
        awaited("the daemon answers", lambda: self.cli("node", "ls").returncode == 0)

    def end(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(WAIT_S)
            self.process = None

    @property
    def files(self) -> PkiFiles:
        return PkiFiles(self.state)

    def token(self, *words: str) -> tuple[str, str]:
        """(id, text) of a token for nodes, unless the words say otherwise."""
        made = self.ask("token", "create", "--role", "node", *words)
        return made["id"], made["text"]


@pytest.fixture(scope="module")
def founder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("joining") / "one")
    assert made.cli("init").returncode == 0
    shutil.copyfile(made.files.authority_key, made.directory / "authority")  # for the search only
    try:
        made.start()
        yield made
    finally:
        made.end()


def machine(founder: Machine, name: str) -> Machine:
    return Machine(founder.directory.parent / name)


def test_a_machine_joins_by_one_string(founder: Machine, figures: list[str]) -> None:
    two = machine(founder, "two")
    began = time.monotonic()
    joined = two.ask("join", "-", stdin=founder.token("--uses", "1")[1])
    figures.append(f"join, with the token made and two programs started: {time.monotonic() - began:.1f} s (to reach: under 10)")
    assert joined["cluster"] == ca.load(founder.files.read_bundle()).subject.rfc4514_string().partition("O=")[2].partition(",")[0]
    rows = {row["name"]: row for row in founder.ask("node", "ls")}
    assert rows["two"]["node"] == joined["node"] and rows["two"]["state"] == "active" and rows["two"]["control"] == two.endpoint
    assert not founder.files.authority_key.exists()
    again = two.cli("join", founder.token()[1])
    assert again.returncode == 1 and "already" in again.stderr
    shown = founder.ask("node", "show", joined["node"][:8])
    assert shown["name"] == "two" and shown["role"] == "node"


def test_a_client_joins(founder: Machine, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(founder.token("--role", "client")[1] + "\n")
    made = machine(founder, "client").ask("join", AWSOMEFSD_TOKEN_FILE=str(tmp_path / "token"))
    assert made["role"] == "client"
    assert next(row for row in founder.ask("node", "ls") if row["name"] == "client")["role"] == "client"


def test_a_node_without_metadata_feeds_its_watchdog(founder: Machine) -> None:
    """No metadata thread does it there, and a service manager would kill the daemon."""
    client = machine(founder, "watched")
    client.ask("join", "-", stdin=founder.token("--role", "client")[1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(client.directory / "notify"))
        manager.settimeout(WAIT_S)
        client.environ |= {"NOTIFY_SOCKET": str(client.directory / "notify"), "WATCHDOG_USEC": "400000"}
        client.launch()
        try:
            heard = [manager.recv(512)]
            while heard.count(b"WATCHDOG=1") < 3:
                heard.append(manager.recv(512))
        finally:
            client.end()
    assert heard[0].startswith(b"READY=1"), heard


def test_bad_tokens_say_what_is_wrong_with_them(founder: Machine) -> None:
    fresh = machine(founder, "fresh")
    used_id, used = founder.token("--uses", "1")
    assert machine(founder, "user").cli("join", "-", stdin=used).returncode == 0
    expired = founder.token("--ttl", "1s")[1]
    revoked_id, revoked = founder.token()
    assert founder.cli("token", "revoke", revoked_id).returncode == 0
    other = machine(founder, "other")
    assert other.cli("init").returncode == 0
    other_cluster = json.loads((other.state / "node.json").read_text())["cluster"]
    pin = ca.id_of(ca.load(other.files.read_bundle()))
    foreign = token.print_token(token.make(other_cluster, pin, (founder.endpoint,), "node", 1 << 41))
    states = {row["id"]: row["state"] for row in founder.ask("token", "list")}
    assert states[used_id] == "used up" and states[revoked_id] == "revoked"
    parsed = token.parse(expired)
    awaited("the token expires", lambda: time.time() * 1_000 > parsed.expires_ms)
    for text, why in (
        (used, "used up"), (expired, "has expired"), (revoked, "was revoked"), (foreign, "check the token and the endpoint"),
        (used[:-20], "truncated"),
        (used[:50] + ("a" if used[50] != "a" else "b") + used[51:], "was altered"), ("afs2-abc", "newer"), ("password", "not a token"),
    ):  # fmt: skip
        done = fresh.cli("join", "-", stdin=text)
        assert done.returncode == 1 and why in done.stderr, (why, done.stderr)
        assert (len(text) < 20 or text[8:28] not in done.stderr) and not (fresh.state / "node.json").exists()
    rotated = founder.ask("token", "rotate", founder.token("--uses", "1")[0])
    assert fresh.cli("join", rotated["text"]).returncode == 0


def test_a_removed_node_is_refused(founder: Machine) -> None:
    gone = machine(founder, "gone")
    made = gone.ask("join", "-", stdin=founder.token()[1])["node"]
    renew = RenewCertificate(ca.make_request(gone.files.own_key(), made))
    with ControlConnection(founder.endpoint, of_member(gone.files)) as connection:
        assert connection.call(renew).certificate
    assert founder.cli("node", "cordon", "gone").returncode == 0
    assert founder.ask("node", "drain", "gone")["state"] == "draining"
    assert founder.ask("node", "uncordon", "gone")["state"] == "active"
    assert founder.cli("node", "remove", "gone").returncode == 0
    with ControlConnection(founder.endpoint, of_member(gone.files)) as connection, pytest.raises(Refused, match="was removed"):
        connection.call(renew)
    assert "gone" not in founder.cli("node", "ls").stdout and "gone" in founder.cli("node", "ls", "--removed").stdout
    (gone.state / "node.json").unlink()
    (gone.state / "pki" / "pending.json").write_text(json.dumps({"node": made}))
    back = gone.cli("join", "-", stdin=founder.token()[1])
    assert back.returncode == 1 and "was removed" in back.stderr and "empty state directory" in back.stderr
    last = founder.cli("node", "remove", "one")
    assert last.returncode == 4 and "leave --purge --yes-destroy" in last.stderr
    assert founder.cli("leave").returncode == 4
    missing = founder.cli("node", "remove", "nobody")
    assert missing.returncode == 1 and "node ls" in missing.stderr


def test_no_secret_is_shown_anywhere(founder: Machine, tmp_path: Path) -> None:
    """The authority's key, a token and its secret: in no log, argv or environment of a process, stream, dump, or list."""
    text = founder.token()[1]
    body = re.sub(r"-----.*?-----|\s", "", (founder.directory / "authority").read_text())
    secret = token.parse(text).secret
    needles = [text[20:60], body[40:80], secret.hex(), repr(secret)[2:-1], token.parse(text).verifier.hex()]
    (tmp_path / "token").write_text(text)
    joiner = subprocess.Popen(
        [*nodes.program(), "join", "-"], env=machine(founder, "quiet").environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert joiner.stdin is not None
    processes = [founder.process, joiner]
    seen = [Path(f"/proc/{process.pid}/{name}").read_bytes() for process in processes if process for name in ("cmdline", "environ")]
    out, _ = joiner.communicate(text.encode(), WAIT_S)
    assert joiner.returncode == 0
    configured = {"AWSOMEFSD_TOKEN_FILE": str(tmp_path / "token")}
    shown = [
        founder.cli("log", "follow", "--no-wait", "-o", "json").stdout,
        founder.cli("token", "list", "-o", "json").stdout,
        founder.cli("ca", "ls", "-o", "json").stdout,
        founder.cli("node", "ls", "-o", "json").stdout,
        founder.cli("status", "-v", "-o", "json").stdout,
        founder.cli("config", "show", **configured).stdout,
        founder.cli("config", "show", "-o", "json", **configured).stdout,
    ]
    assert all(shown) and "PutCa" in shown[0] and "PutToken" in shown[0]
    logs = [path.read_bytes() for path in founder.directory.parent.glob("*/log")]
    everything = b"\n".join([*seen, out, *logs, *(part.encode() for part in shown)])
    assert [needle for needle in needles if needle.encode() in everything] == []
    assert b"PRIVATE KEY" not in everything
