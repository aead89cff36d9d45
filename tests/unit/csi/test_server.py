"""Strangers that say nothing do not stay at the socket of the CSI driver."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from awsomefsd.base import sockets
from awsomefsd.base.metrics import Registry
from awsomefsd.csi import server
from awsomefsd.csi.grpc_errors import CallFigures
from awsomefsd.csi.identity import IdentityService
from awsomefsd.csi.pb import csi_pb2, csi_pb2_grpc
from tests.rigs.descriptors import many_descriptors

STRANGERS = 1_000
AUTHORITY = ("grpc.default_authority", "localhost")
WAIT_S = 60.0  # well below the 120 s of gRPC
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def many_files() -> Iterator[None]:
    with many_descriptors():
        yield


def _stranger(place: str, number: int) -> socket.socket:
    """Returns one that is silent, or has said a part of what a connection begins with."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(WAIT_S)
    made.connect(place)
    made.sendall((b"", _PREFACE[:9], _PREFACE, _PREFACE + b"\0\0\6\4")[number % 4])
    return made


def _await_end(stranger: socket.socket) -> None:
    with stranger, suppress(ConnectionError):
        while stranger.recv(4_096):
            pass


def test_the_socket_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind makes the file, and what comes after it is too late: a connection that stands keeps standing."""
    modes: list[int] = []
    monkeypatch.setattr(server.os, "chmod", lambda path, _mode: modes.append(Path(path).stat().st_mode & 0o777))
    driver = server.DriverSocket(tmp_path / "csi.sock", 1)
    driver.open((csi_pb2_grpc.add_IdentityServicer_to_server, IdentityService(lambda: None, CallFigures(Registry()))))
    driver.close()
    assert modes == [0o600]


@pytest.mark.usefixtures("many_files")
def test_kubelet_is_served_under_a_thousand_half_open_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_MS", 5_000)
    path = tmp_path / "csi.sock"
    driver = server.DriverSocket(path, server.CALLS_MAX)
    driver.open((csi_pb2_grpc.add_IdentityServicer_to_server, IdentityService(lambda: None, CallFigures(Registry()))))
    strangers: list[socket.socket] = []
    try:
        with sockets.address(path) as place, grpc.insecure_channel(f"unix:{place}", [AUTHORITY]) as channel:
            kubelet = csi_pb2_grpc.IdentityStub(channel)
            for number in range(STRANGERS):
                strangers.append(_stranger(place, number))
                if number % 200 == 0:
                    assert kubelet.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=WAIT_S).name
            with grpc.insecure_channel(f"unix:{place}", [AUTHORITY, ("grpc.use_local_subchannel_pool", 1)]) as new:
                assert csi_pb2_grpc.IdentityStub(new).GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=WAIT_S).name
            for stranger in strangers:
                _await_end(stranger)
            assert kubelet.GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=WAIT_S).name, "who has begun well stays"
    finally:
        for stranger in strangers:
            stranger.close()
        driver.close()
