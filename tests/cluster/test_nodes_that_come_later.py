"""Nodes that come and go in Kubernetes after the install: real daemons, the real node keeper, and a stand-in for the API server.

The founding token expires, a new machine comes with it all the same and joins with what the keeper has put into the Secret; one whose
Kubernetes node is gone is removed, and one that is only silent, or was never of Kubernetes, is not.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import identity
from awsomefsd.base.errors import Refused
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.cluster.control.client import ControlConnection, of_member
from awsomefsd.cluster.messages import Redirect, RenewCertificate
from awsomefsd.cluster.pki import ca, founding_token, token
from awsomefsd.cluster.pki.pki_files import PkiFiles
from tests.cluster.token_daemon import WAIT_S, Daemon
from tests.rigs.free_ports import free_ports
from tests.rigs.kubernetes_api import SECRET, KubernetesApi

FOUNDING_MS = (40_000, 160_000)  # the life of the founding token: three daemons have to found a cluster in it, or with the next one


def awaited(what: str, there: Callable[[], Any], also: Callable[[], str] = str) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := there()):
        assert time.monotonic() < end, f"{what}: {also()[-3_000:]}"
        time.sleep(0.1)
    return found


def refused(port: int, state: Path, node: str) -> str:
    """What a control port says to this node, whose certificate is good by its dates; "" if it renews that."""
    files = PkiFiles(state)
    with ControlConnection(f"127.0.0.1:{port}", of_member(files)) as connection:
        try:
            answer = connection.call(RenewCertificate(ca.make_request(files.own_key(), node)))
        except Refused as err:
            return str(err)
    return "ask the leader" if isinstance(answer, Redirect) else ""


class Kubelet:
    """Puts the Secret's token into the file that the pods of nodes mount: absent without one, and replaced whole."""

    def __init__(self, api: KubernetesApi, file: Path) -> None:
        self._api, self._file = api, file
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        last = ""
        while not self._ends.wait(0.1):
            if (text := self._api.value("token")) != last:
                (new := self._file.with_suffix(".new")).write_text(text)
                new.rename(self._file)
                last = text

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


class Keeper:
    """`awsomefsd kubernetes keep-nodes` as a process, at a daemon."""

    def __init__(self, api: KubernetesApi, daemon: Daemon, log: Path, *words: str) -> None:
        self.log = log
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AWSOMEFSD_")} | {
            "AWSOMEFSD_RUN_DIR": str(daemon.run), "AWSOMEFSD_STATE_DIR": str(daemon.state), "NODE_NAME": daemon.state.parent.name,
            "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port),
        }  # fmt: skip
        command = [sys.executable, "-m", "awsomefsd", "kubernetes", "keep-nodes", f"--secret={SECRET}", "--every=1s"]
        command += [f"--account={api.account}", *words]
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(WAIT_S)


class Cluster:
    """Three daemons of a founding token that is short-lived, the API server, and a file with the Secret's token."""

    def __init__(self, directory: Path, api: KubernetesApi, founding_ms: int) -> None:
        directory.mkdir()
        self.directory, self.api = directory, api
        self.join_file = directory / "join" / "token"
        self.join_file.parent.mkdir()
        self.ports = free_ports(24)
        self.founding = founding_token.make(3, (f"127.0.0.1:{self.ports[0]}",), time.time_ns() // NS_PER_MS + founding_ms)
        (directory / "founding").write_text(founding_token.print_token(self.founding) + "\n")
        self.daemons: list[Daemon] = []
        self.keepers: list[Keeper] = []
        self.kubelet = Kubelet(api, self.join_file)

    def daemon(self, name: str, **variables: str) -> Daemon:
        """Starts a pod's daemon, with what the chart gives it; its Kubernetes node is there."""
        control, metadata = self.ports[2 * len(self.daemons)], self.ports[2 * len(self.daemons) + 1]
        given = {"AWSOMEFSD_TOKEN_FILE": str(self.directory / "founding"), "AWSOMEFSD_KUBERNETES_JOIN_TOKEN": str(self.join_file)}
        given = {key: value for key, value in (given | variables).items() if value}
        made = Daemon(self.directory / name, control, metadata, **given)
        self.daemons.append(made)
        with self.api.lock:
            self.api.nodes.add(name)
        made.start()
        return made

    def is_founded(self) -> bool:
        return all(identity.identity_path(one.state).exists() for one in self.daemons)

    def keeper(self, *words: str) -> Keeper:
        made = Keeper(self.api, self.daemons[0], self.directory / f"keeper{len(self.keepers)}", *words)
        self.keepers.append(made)
        return made

    def rows(self) -> dict[str, Any]:
        done = self.daemons[0].cli("node", "ls", "-o", "json")
        return {row["name"]: row for row in json.loads(done.stdout)} if done.returncode == 0 else {}

    def tokens(self) -> list[Any]:
        return [row for row in json.loads(self.daemons[0].cli("token", "list", "-o", "json").stdout) if row["kind"] == "join"]

    def end(self) -> None:
        self.kubelet.end()
        for keeper in self.keepers:
            keeper.end()
        for daemon in self.daemons:
            daemon.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("later")
    with KubernetesApi(directory / "account") as api, ExitStack() as stack:
        yield founded(directory, api, stack)


def founded(directory: Path, api: KubernetesApi, stack: ExitStack) -> Cluster:
    """Before its token has expired: a machine that is too slow for a short life gets a longer one.  `stack` ends it."""
    for number, life_ms in enumerate(FOUNDING_MS):
        made = Cluster(directory / str(number), api, life_ms)
        stack.callback(made.end)
        for place in range(3):
            made.daemon(f"n{place}")
        while not made.is_founded() and time.time_ns() // NS_PER_MS < made.founding.expires_ms:
            time.sleep(0.05)
        if made.is_founded():
            for one in made.daemons:
                one.says('cluster: "')
            return made
        stack.pop_all().close()
    raise AssertionError(f"three daemons have not founded a cluster in {FOUNDING_MS[-1]} ms")


def test_a_node_joins_after_the_founding_token_has_expired(cluster: Cluster) -> None:
    """Two keepers run, as the chart has it: one token is in the Secret, and none is left that nobody needs."""
    for _ in range(2):
        cluster.keeper("--uses=8", "--ttl=1h")
    awaited("the Secret has a token", lambda: cluster.api.value("token"), lambda: cluster.keepers[0].log.read_text())
    while time.time_ns() // NS_PER_MS < cluster.founding.expires_ms:
        time.sleep(0.2)
    late = cluster.daemon("late")
    late.says('cluster: "')
    assert identity.load(late.state).cluster == cluster.founding.cluster_uuid
    assert cluster.rows()["late"]["role"] == "node"
    held = token.parse(cluster.api.value("token"))
    assert (held.role, held.cluster_uuid) == ("node", cluster.founding.cluster_uuid)
    [good] = [row for row in cluster.tokens() if row["state"] == "good"]
    assert good["id"] == held.id and good["uses_left"] == 7 and good["expires_ms"] - good["created_ms"] <= 3_600_000 + 60_000
    said = cluster.keepers[0].log.read_text() + cluster.keepers[1].log.read_text() + late.log.read_text()
    assert cluster.api.value("token")[8:] not in said
    assert {verb for verb, _path, _code in cluster.api.asked} == {"GET", "PUT"} and 403 not in {code for *_, code in cluster.api.asked}


def test_without_the_file_the_expired_token_ends_the_daemon(cluster: Cluster) -> None:
    while time.time_ns() // NS_PER_MS < cluster.founding.expires_ms:
        time.sleep(0.2)
    alone = cluster.daemon("alone", AWSOMEFSD_KUBERNETES_JOIN_TOKEN="")
    assert alone.ended() == 1 and "the founding token has expired" in alone.log.read_text()
    cluster.api.nodes.discard("alone")


def test_a_node_waits_for_a_token_that_is_good(cluster: Cluster) -> None:
    """The file holds one that was used up; the daemon says so, and joins with the next one."""
    made = json.loads(cluster.daemons[0].cli("token", "create", "--role", "node", "--uses", "1", "-o", "json").stdout)
    cluster.daemons[0].cli("token", "revoke", made["id"])
    stale = cluster.directory / "stale"
    stale.write_text(made["text"])
    waits = cluster.daemon("waits", AWSOMEFSD_KUBERNETES_JOIN_TOKEN=str(stale))
    waits.says("the token was revoked")
    stale.write_text(json.loads(cluster.daemons[0].cli("token", "create", "--role", "node", "-o", "json").stdout)["text"])
    waits.says('cluster: "')


def test_the_token_follows_the_authority(cluster: Cluster) -> None:
    """A token names the authority that signs: after a rotation nobody could join with the one of before."""
    cluster.keeper()
    former = token.parse(awaited("the Secret has a token", lambda: cluster.api.value("token"))).pin
    assert cluster.daemons[0].cli("ca", "rotate").returncode == 0
    awaited("it names the new one", lambda: token.parse(cluster.api.value("token")).pin != former, cluster.keepers[-1].log.read_text)
    cluster.daemon("after").says('cluster: "')


def test_what_is_gone_for_good_is_removed_and_nothing_else(cluster: Cluster) -> None:
    """One is silent while its Kubernetes node is there; one is gone with its Kubernetes node; one runs on and was never of Kubernetes."""
    names = ("gone", "silent", "outside")
    keeper = cluster.keeper("--remove-after=2s")
    awaited("there is a token", cluster.join_file.exists, keeper.log.read_text)
    made = {name: cluster.daemon(name, AWSOMEFSD_TOKEN_FILE=str(cluster.join_file)) for name in names}
    with cluster.api.lock:
        cluster.api.nodes.discard("outside")
    for one in made.values():
        one.says('cluster: "')
    awaited("all are seen", lambda: "silent" in cluster.api.value("nodes") and "gone" in cluster.api.value("nodes"), keeper.log.read_text)
    for name in names:
        made[name].end(signal.SIGKILL)
    with cluster.api.lock:
        cluster.api.nodes.discard("gone")
    awaited("the node is removed", lambda: (rows := cluster.rows()) and "gone" not in rows, keeper.log.read_text)
    gone = identity.load(made["gone"].state).node
    awaited("it is said", lambda: re.search(f"is removed.*gone={gone}", keeper.log.read_text()))
    assert {"silent", "outside", "n0", "n1", "n2"} <= set(cluster.rows())
    assert awaited("it is forgotten", lambda: gone not in cluster.api.value("nodes"))
    said = [refused(cluster.ports[2 * number], made["gone"].state, gone) for number in range(3)]
    assert all(said) and any("was removed" in one for one in said), said


def test_the_secret_and_the_api_server_come_back(cluster: Cluster) -> None:
    """Away, without the Secret, with a replaced account, and with a token that somebody wrote over: said once, and mended."""
    keeper, api = cluster.keeper(), cluster.api
    awaited("it looked", lambda: api.value("token"))
    api.away = True
    awaited("it says so", lambda: "currently unable" in keeper.log.read_text())
    api.rotate("account-2")
    with api.lock:
        held = api.secrets.pop(SECRET)
    api.away = False
    awaited("it says that too", lambda: "the chart makes this Secret, empty" in keeper.log.read_text())
    with api.lock:
        held["data"] = {}
        api.secrets[SECRET] = held
    text = awaited("there is a token again", lambda: api.value("token"))
    count = len(cluster.tokens())
    for _ in range(3):
        api.put_value("token", "nonsense")
        text = awaited("and again", lambda: (now := api.value("token")).startswith("afs1-") and now)
    assert token.parse(text).cluster_uuid == cluster.founding.cluster_uuid
    assert len(cluster.tokens()) <= count + len(cluster.keepers), "what is good is put back, and not made anew"
