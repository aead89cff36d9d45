"""The daemon as a whole: how it begins, what ends it, and what it tells workers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from awsomefsd.base import identity, levels
from awsomefsd.base.errors import ConfigError, Refused
from awsomefsd.cluster.membership.view import readiness
from awsomefsd.cluster.pki import token
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.mount_options import parse
from awsomefsd.config.settings import Settings, load
from awsomefsd.daemon import daemon, worker_config
from awsomefsd.daemon.metadata_core import MetadataCore, begin
from awsomefsd.meta.api.commands.nodes import PutToken, RevokeToken
from awsomefsd.node.health import join_token
from awsomefsd.node.health.upgrade import Upgrade
from awsomefsd.node.mounts import DesiredMount
from awsomefsd.recovery import restore
from tests.rigs.free_ports import free_ports


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load(environ={}, state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    identity.init(made.state_dir)
    return made


@pytest.mark.trio
async def test_ends_when_the_metadata_service_does(settings: Settings) -> None:
    whole = daemon.Daemon(MetadataCore(settings))

    def fail() -> None:
        whole.metadata.service.error = OSError(5, "fdatasync failed")
        whole.metadata.service.failed.fire()

    try:
        with trio.fail_after(60), pytest.raises(daemon.MetadataEnded, match="fdatasync failed"):
            await daemon.serve(whole, fail)
    finally:
        whole.close()
    assert not settings.admin_socket.exists()
    identity.StateLock(settings.state_dir).release()


def test_it_starts_though_what_made_the_node_still_holds_the_directory(tmp_path: Path) -> None:
    """`init` and `join` write the identity while they hold the lock: a daemon that waits for it is often quicker than their end."""
    settings = load(environ={}, state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    begun: list[threading.Thread] = []
    serving: list[MetadataCore] = []

    def begin_before_the_end(state_dir: Path, node: identity.Node) -> None:
        write(state_dir, node)
        begun.append(threading.Thread(target=lambda: serving.append(MetadataCore(settings))))
        begun[0].start()
        begun[0].join(0.5)  # it has met the lock
        assert not serving

    write = identity.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "write", begin_before_the_end)
        made = identity.init(settings.state_dir)
    begun[0].join()
    assert serving and serving[0].node == made
    serving[0].close()


@pytest.mark.trio
async def test_a_node_without_ports_is_heard_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`node ls` calls it ready, and an upgrade of it can be finalized: what its row says of the build is as new as the build."""
    environ = {"AWSOMEFSD_CLUSTER_LISTEN": "", "AWSOMEFSD_METADATA_LISTEN": ""}
    settings = load(environ=environ, state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    files = PkiFiles(settings.state_dir)
    identity.init(settings.state_dir, prepare=lambda made: files.found(made.cluster, made.node))
    monkeypatch.setenv(levels.VARIABLE, str(levels.LEVEL - 1))
    daemon.Daemon(MetadataCore(settings)).close()  # the build before
    monkeypatch.delenv(levels.VARIABLE)
    whole = daemon.Daemon(MetadataCore(settings))
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.serve, whole, lambda: None)
                while readiness((listed := whole.control.admin.listed()).nodes[0], listed.led_ms) != "ready":
                    await trio.sleep(0.05)
                assert whole.control.admin.nodes()[0].level == levels.LEVEL
                assert Upgrade(whole.catalog).finalize().level == levels.LEVEL
                nursery.cancel_scope.cancel()
    finally:
        whole.close()


@pytest.mark.trio
async def test_a_join_token_that_nobody_renews_is_in_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there in Kubernetes only; while it is empty just after the start, its first token may be on its way."""
    file = tmp_path / "token"
    file.touch()
    environ = {"AWSOMEFSD_CLUSTER_LISTEN": "", "AWSOMEFSD_METADATA_LISTEN": "", "AWSOMEFSD_KUBERNETES_JOIN_TOKEN": str(file)}
    settings = load(environ=environ, state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    files = PkiFiles(settings.state_dir)
    identity.init(settings.state_dir, prepare=lambda made: files.found(made.cluster, made.node))
    whole = daemon.Daemon(MetadataCore(settings))

    def found() -> bool:
        [one] = [one.value for one in whole.figures.samples() if ("code", "JOIN_TOKEN") in one.labels]
        return bool(one)

    try:
        assert not found()
        monkeypatch.setattr(join_token, "LATE_S", 0.0)
        assert found()
        made = token.make(identity.load(settings.state_dir).cluster, "ab" * 32, ("127.0.0.1:1",), "node", time.time_ns() // 10**6 + 60_000)
        file.write_text(token.print_token(made))
        whole.catalog.propose(PutToken(made.id, "join", "node", made.verifier, made.expires_ms, 1))
        assert not found()
        whole.catalog.propose(RevokeToken(made.id))
        assert found()
    finally:
        whole.close()


def test_others_reach_a_node_that_came_back_from_its_first_start_on(tmp_path: Path) -> None:
    """Brought back from a device or a backup, it gets its certificate after the metadata serves."""
    port, control = free_ports(2)
    environ = {"AWSOMEFSD_METADATA_LISTEN": f"127.0.0.1:{port}", "AWSOMEFSD_CLUSTER_LISTEN": f"127.0.0.1:{control}"}
    settings = load(environ=environ, state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    lost = identity.init(settings.state_dir)
    daemon.Daemon(MetadataCore(settings)).close()  # commits what it has entered
    whole = daemon.Daemon(MetadataCore(settings))
    try:
        whole.metadata.copy_store(tmp_path / "copy")
    finally:
        whole.close()
    shutil.rmtree(settings.state_dir)
    with ExitStack() as undo:
        (tmp_path / "copy").rename(restore.begin(settings.state_dir, undo) / "data.mdb")
        restore.finish(settings.state_dir, lost.cluster, 1, [], "confirmed", undo)
    whole = daemon.Daemon(MetadataCore(settings))
    try:
        assert whole.metadata.alone
        socket.create_connection(("127.0.0.1", port), 60).close()
    finally:
        whole.close()


def test_parts_that_cannot_be_built_leave_nothing_running(settings: Settings) -> None:
    settings.run_dir.mkdir()
    (settings.run_dir / "admin").touch()
    with pytest.raises(Refused):
        daemon.Daemon(MetadataCore(settings))
    identity.StateLock(settings.state_dir).release()


def test_the_metadata_serves_before_the_rest_is_imported(settings: Settings) -> None:
    """A mount waits for what is imported before; in a process of its own, for this one has imported everything."""
    words = (
        "import sys; from pathlib import Path\n"
        "from awsomefsd.config import settings; from awsomefsd.daemon import metadata_core\n"
        "first = metadata_core.begin(settings.load(environ={}, state_dir=Path(sys.argv[1]), run_dir=Path(sys.argv[2])))\n"
        "assert first.metadata.alone\n"
        "print(*sorted({'trio', 'grpc', 'cryptography', 'yaml', 'rich', 'awsomefsd.daemon.daemon'} & set(sys.modules)))\n"
        "first.close()"
    )
    argv = [sys.executable, "-c", words, str(settings.state_dir), str(settings.run_dir)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
    identity.StateLock(settings.state_dir).release()


def test_a_node_without_an_identity_begins_with_nothing(tmp_path: Path) -> None:
    assert begin(load(environ={}, state_dir=tmp_path / "state", run_dir=tmp_path / "run")) is None


def test_workers_are_told_everything(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker_config.OVERRIDES_VARIABLE, "minor=34,resend=off,without=0x40")
    made = worker_config.worker_config(settings, identity.load(settings.state_dir))
    told = made(DesiredMount(9, 3, "demo", "/mnt", ("ro",)), parse(["ro"]))
    assert (told.volume, told.mount, told.read_only, told.meta_sock) == (3, 9, True, str(settings.meta_socket))
    assert told.overrides == {"minor": 34, "resend": False, "without": 0x40} and told.boot_id == identity.boot_id()
    assert told.version == 1 and not told.leased_names
    sharing = made(DesiredMount(9, 3, "demo", "/mnt", ("shared", "names=leases")), parse(["shared", "names=leases"]))
    assert sharing.leased_names and sharing.version == 2, "a worker that does not know it takes no such mount over"
    for bad in ("minor", "minor=x", "resend=maybe", "what=1"):
        with pytest.raises(ConfigError, match=bad):
            worker_config.overrides_of(bad)
    assert worker_config.overrides_of("") == {}
