"""The admin API: who may ask, how errors cross it, and that the generated code is what admin.proto says."""

from __future__ import annotations

import grp
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from awsomefsd.admin import client, server, trailers
from awsomefsd.admin.client import AdminClient
from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.pb import admin_pb2_grpc
from awsomefsd.admin.stream_service import StreamRpcs
from awsomefsd.base import sockets
from awsomefsd.base.errors import AlreadyExists, Error, FsError, NotFound, Refused, Unavailable, WouldLoseData
from awsomefsd.base.metrics import Registry
from awsomefsd.meta.api.commands import DeleteVolume, Entry
from tests.rigs.full_queue import full_queue

ROOT = Path(__file__).parents[3]
ERRORS = {
    "lose": WouldLoseData("it holds ext4"),
    "none": NotFound("no such volume; créez-le"),
    "twice": AlreadyExists("there is one"),
    "busy": FsError(16, "used by bash"),
    "away": Unavailable("try again"),
}


class Service(admin_pb2_grpc.AdminServicer):
    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.go_on = threading.Event()

    @edge
    def Mount(self, request: pb.MountRequest, context: grpc.ServicerContext) -> pb.MountPoint:
        if request.volume in ERRORS:
            raise ERRORS[request.volume]
        assert request.volume != "bug"
        if request.volume == "waits":
            self.waiting.release()
            self.go_on.wait()
        return pb.MountPoint(volume=request.volume, directory=request.directory)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def inner(tmp_path: Path, service: Service) -> Iterator[server.GrpcServer]:
    run_dir = tmp_path / ("deep" * 30)
    run_dir.mkdir()
    running = server.GrpcServer(service, run_dir)
    yield running
    running.stop(0)


@asynccontextmanager
async def opened(inner: server.GrpcServer, group: str | None = None) -> AsyncIterator[tuple[server.Door, Path, Any]]:
    path = inner.directory.parent / "admin.sock"
    refused = Registry().counter("awsomefsd_admin_refused_total", "")
    door = server.Door(path, inner, group, refused)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.serve)
        yield door, path, refused
        nursery.cancel_scope.cancel()


def ask(path: Path, volume: str) -> Any:
    with AdminClient(path) as client:
        return client.call("Mount", volume=volume, directory="/mnt")


@pytest.mark.trio
async def test_calls_pass_the_door_and_errors_come_back_as_they_were(inner: server.GrpcServer) -> None:
    async with opened(inner) as (_door, path, _refused):
        reply = await trio.to_thread.run_sync(ask, path, "demo")
        assert reply.volume == "demo" and reply.directory == "/mnt"
        for volume, error in ERRORS.items():
            with pytest.raises(type(error)) as caught:
                await trio.to_thread.run_sync(ask, path, volume)
            assert type(caught.value) is type(error) and str(caught.value) == str(error) and caught.value.errno == error.errno
        with pytest.raises(Error, match="a bug in the daemon"):
            await trio.to_thread.run_sync(ask, path, "bug")


@pytest.mark.trio
async def test_health_and_reflection(inner: server.GrpcServer) -> None:
    def look(path: Path) -> tuple[int, list[str]]:
        with sockets.address(path) as place, grpc.insecure_channel(f"unix:{place}", [("grpc.default_authority", "localhost")]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=server.SERVICE_NAME), timeout=60)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=60)
            return check.status, [service.name for service in answer.list_services_response.service]

    async with opened(inner) as (_door, path, _refused):
        status, names = await trio.to_thread.run_sync(look, path)
    assert status == health_pb2.HealthCheckResponse.SERVING and "awsomefsd.admin.v1.Admin" in names


@pytest.mark.trio
async def test_a_server_ends_with_its_last_caller_and_begins_with_the_next(
    inner: server.GrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REST_S", 0.01)
    own = inner.inner[True]
    async with opened(inner) as (_door, path, _refused):
        for number in (1, 2, 3):
            assert own.server is None
            socket = path.with_name(f"{number}.sock")  # gRPC of this process keeps a connection for each name
            socket.symlink_to(path)
            assert (await trio.to_thread.run_sync(ask, socket, "demo")).volume == "demo"
            with trio.fail_after(60):
                while own.server is not None:
                    await trio.sleep(0.01)
            assert inner.inner[False].server is None


@pytest.mark.trio
async def test_strangers_are_shown_out(inner: server.GrpcServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(inner) as (door, path, refused):
        monkeypatch.setattr(server.sockets, "peer_of", lambda _sock: sockets.Peer(1, 12_345, frozenset({12_345})))
        with pytest.raises(Unavailable, match="run as root or as a member of its admin group"):
            await trio.to_thread.run_sync(ask, path, "demo")
        assert refused.value > 0 and not door.admits(sockets.Peer(1, 12_345, frozenset({0})))


@pytest.mark.trio
async def test_members_of_the_group_that_hold_on_to_connections_keep_root_out_of_nothing(
    inner: server.GrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 4)
    group = grp.getgrgid(os.getgid())
    member = sockets.Peer(1, 12_345, frozenset({group.gr_gid}))
    async with opened(inner, group.gr_name) as (door, path, _refused):
        real = server.sockets.peer_of
        monkeypatch.setattr(server.sockets, "peer_of", lambda _sock: member)
        held = []
        for number in range(20):
            with sockets.address(path) as place:
                held.append(await trio.open_unix_socket(place))
            if number < 4:
                await held[-1].send_all(b"PRI * HTTP/2.0\r\n")
        while door._limits[False].statistics().tasks_waiting < 16:
            await trio.sleep(0.01)
        monkeypatch.setattr(server.sockets, "peer_of", real)
        assert (await trio.to_thread.run_sync(ask, path, "demo")).volume == "demo"
        for one in held:
            await one.aclose()


@pytest.mark.trio
async def test_calls_of_the_group_that_wait_keep_root_from_nothing(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CALLS_MAX", 2)
    (tmp_path / "run").mkdir()
    inner = server.GrpcServer(service, tmp_path / "run")
    group = grp.getgrgid(os.getgid())
    try:
        async with opened(inner, group.gr_name) as (_door, path, _refused):
            real = server.sockets.peer_of
            monkeypatch.setattr(server.sockets, "peer_of", lambda _sock: sockets.Peer(1, 12_345, frozenset({group.gr_gid})))
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(trio.to_thread.run_sync, ask, path, "waits")
                for _ in range(2):
                    await trio.to_thread.run_sync(service.waiting.acquire)
                monkeypatch.setattr(server.sockets, "peer_of", real)
                other = tmp_path / "other.sock"  # gRPC of this process would use the connection of the calls above once more
                other.symlink_to(path)
                with trio.move_on_after(60) as late:
                    assert (await trio.to_thread.run_sync(ask, other, "demo", abandon_on_cancel=True)).volume == "demo"
                service.go_on.set()
                assert not late.cancelled_caught
    finally:
        service.go_on.set()
        inner.stop(0)


class Endless:
    """A change stream in which nothing happens after the first entry."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def follow(self, *_arguments: object, **_words: object) -> Iterator[Entry]:
        yield Entry(1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, [], DeleteVolume(1, False))
        self.end.wait()


def test_followers_of_the_group_take_no_place_of_root(tmp_path: Path) -> None:
    endless, service = Endless(), Service()
    service.Follow = StreamRpcs(endless, threading.Event()).Follow  # type: ignore[arg-type,method-assign]
    (tmp_path / "run").mkdir()
    inner = server.GrpcServer(service, tmp_path / "run")

    def follow(channel: grpc.Channel) -> Any:
        started = admin_pb2_grpc.AdminStub(channel).Follow(pb.FollowRequest(follow=True))
        return started, next(started).index

    authority = [("grpc.default_authority", "localhost")]
    try:
        for one in inner.inner.values():
            one._begin()
        with (
            sockets.address(inner.inner[True].path) as ours, sockets.address(inner.inner[False].path) as groups,
            grpc.insecure_channel(f"unix:{ours}", authority) as root, grpc.insecure_channel(f"unix:{groups}", authority) as group,
        ):  # fmt: skip
            held = [follow(group) for _ in range(server.FOLLOWERS_MAX)]
            with pytest.raises(grpc.RpcError, match="followers are connected already"):
                follow(group)
            held += [follow(root) for _ in range(server.FOLLOWERS_MAX)]
            assert len(held) == 2 * server.FOLLOWERS_MAX
            endless.end.set()
    finally:
        endless.end.set()
        inner.stop(0)


@pytest.mark.trio
async def test_root_ourselves_and_the_group_may_enter(inner: server.GrpcServer) -> None:
    group = grp.getgrgid(os.getgid())
    async with opened(inner, group.gr_name) as (door, path, _refused):
        assert path.stat().st_mode & 0o777 == 0o660 and inner.directory.stat().st_mode & 0o777 == 0o700
        assert door.admits(sockets.Peer(1, 0, frozenset())) and door.admits(sockets.Peer(1, os.geteuid(), frozenset()))
        assert door.admits(sockets.Peer(1, 12_345, frozenset({7, group.gr_gid}))) and not door.admits(
            sockets.Peer(1, 12_345, frozenset({54_321}))
        )
    assert not path.exists()


def test_nobody_there_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="awsomefsd run"):
        AdminClient(tmp_path / "admin.sock")
    sockets.listen_unix(tmp_path / "admin.sock", 0o600).close()
    with pytest.raises(Unavailable, match="awsomefsd run"):
        AdminClient(tmp_path / "admin.sock")


def test_a_daemon_that_is_stopped_is_not_called_one_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_S", 0.2)
    path = tmp_path / "admin.sock"
    told = pytest.raises(Unavailable, match="lives, but does not answer: it is stopped")
    with sockets.listen_unix(path, 0o600), AdminClient(path) as asking, told as refused:
        asking.call("ListMounts", timeout_s=60)
    assert "run as root" not in str(refused.value), "no right is missing"


def test_a_daemon_that_is_stopped_holds_up_nobody_however_many_have_asked(tmp_path: Path) -> None:
    """Each who gave up stays in the kernel's queue, and where that is full connect(2) waits for as long as the daemon is stopped."""
    path = tmp_path / "admin.sock"
    with full_queue(path), pytest.raises(Unavailable, match="lives, but does not answer: it is stopped"):
        AdminClient(path)


def test_every_error_has_a_status() -> None:
    for error in (*ERRORS.values(), Refused("x"), Error("x")):
        assert trailers.status_of(error) is not grpc.StatusCode.OK


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    places = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT}", *places, "awsomefsd/admin/pb/admin.proto"]) == 0
    for name in ("admin_pb2.py", "admin_pb2.pyi", "admin_pb2_grpc.py"):
        committed = (ROOT / "awsomefsd" / "admin" / "pb" / name).read_text()
        assert plain(committed) == plain((tmp_path / "awsomefsd" / "admin" / "pb" / name).read_text()), (
            f"{name} is old: {sys.executable} -m grpc_tools.protoc -I. --{{python,pyi,grpc_python}}_out=. awsomefsd/admin/pb/admin.proto"
        )


def plain(code: str) -> str:
    """Without what names the version of the generator."""
    code = re.sub(r"# Protobuf Python Version: .*\n", "", code)
    code = re.sub(r"ValidateProtobufRuntimeVersion\([^)]*\)", "", code)
    return re.sub(r"GRPC_GENERATED_VERSION = .*\n", "", code)
