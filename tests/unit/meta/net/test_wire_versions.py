"""Two builds that speak different wire versions: the newest that both know, or a refusal that says what each speaks.

The other build is a second copy of a module with other constants, so both run in one process.
"""

from __future__ import annotations

import errno
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client import core as core_module
from awsomefsd.meta.net import peers as peers_module
from awsomefsd.meta.raft.messages import Heartbeat
from awsomefsd.meta.server import requests as requests_module
from awsomefsd.meta.voter import peer_messages
from tests.rigs.peer_net import A, B, Net
from tests.unit.meta.server.leader_group import Cluster, Wire


def other_build(module: ModuleType, monkeypatch: pytest.MonkeyPatch, **constants: int) -> ModuleType:
    """Returns a copy of a module with these constants."""
    spec = module.__spec__
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, copy)  # its dataclasses look themselves up while it is executed
    assert spec.loader is not None
    spec.loader.exec_module(copy)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in constants.items():
        assert hasattr(copy, name)
        setattr(copy, name, value)
    return copy


@contextmanager
def _agreements(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Iterator[list[int]]:
    """Collects the versions that nodes of these builds agree to."""
    said: list[int] = []
    with monkeypatch.context() as patched:
        for module in modules:
            patched.setattr(module, "agreed", _noting(module.agreed, said))
        yield said


def _noting(agreed: Callable[..., int], said: list[int]) -> Callable[..., int]:
    def noting(*versions: int) -> int:
        said.append(agreed(*versions))
        return said[-1]

    return noting


def _start(net: Net, node: str, build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[Net.__module__], "Peers", build.Peers)
        net.start(node)


NOW = peer_messages.PEER_PROTOCOL_VERSION


@pytest.mark.parametrize("newer", [A, B])
def test_voters_of_two_builds_speak_the_newest_version_that_both_know(net: Net, newer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    later = other_build(peers_module, monkeypatch, PEER_PROTOCOL_VERSION=NOW + 1)
    with _agreements(monkeypatch, peers_module, later) as said:
        for node in (A, B):
            _start(net, node, later if node == newer else peers_module, monkeypatch)
        net.until(lambda: net.connected(A) and net.connected(B))
        beat = Heartbeat("a/i", "b/i", 3, 1, 0)
        net.peers[A].send(B, beat)
        net.peers[B].send(A, beat)
        net.until(lambda: bool(net.got[A]) and bool(net.got[B]))
    assert said and set(said) == {NOW}


def test_two_newer_builds_speak_their_own_version(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    later = other_build(peers_module, monkeypatch, PEER_PROTOCOL_VERSION=NOW + 1)
    with _agreements(monkeypatch, later) as said:
        for node in (A, B):
            _start(net, node, later, monkeypatch)
        net.until(lambda: net.connected(A) and net.connected(B))
    assert set(said) == {NOW + 1}


def test_voters_without_a_common_version_say_what_they_speak(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    later = other_build(peers_module, monkeypatch, PEER_PROTOCOL_VERSION=NOW + 1, PEER_PROTOCOL_OLDEST=NOW + 1)
    _start(net, A, later, monkeypatch)
    _start(net, B, peers_module, monkeypatch)
    net.until(lambda: net.peers[A].refused > 0 and any("refused by it" in peer.reason for peer in net.peers[B]._outgoing.values()))
    assert not net.connected(A) and not net.connected(B)
    reasons = [peer.reason for peer in net.peers[B]._outgoing.values()]
    assert any(f"protocol {NOW}; this node speaks {NOW + 1} to {NOW + 1}" in reason for reason in reasons), reasons


# --- clients ------------------------------------------------------------------------------------------------------------------
def _answer(client: Any, monkeypatch: pytest.MonkeyPatch, newest: int, oldest: int = m.PROTOCOL_OLDEST) -> m.Reply:
    """Returns what a leader that speaks `oldest` to `newest` says to a client's greeting."""
    monkeypatch.setattr(requests_module, "PROTOCOL_OLDEST", oldest)
    monkeypatch.setattr(requests_module, "PROTOCOL_VERSION", newest)
    cluster = Cluster(1)
    answer = Wire(cluster, cluster.lead("n1"), 5, 0, 0).ask(client.hello())
    assert answer is not None
    return answer


def _client(build: ModuleType) -> Any:
    return build.ClientCore(5, ("/a",), lambda call, body: None, lambda: 10**9)


@pytest.mark.parametrize(("client", "leader"), [(0, 1), (1, 0), (1, 1)])
def test_client_and_leader_speak_the_newest_version_that_both_know(client: int, leader: int, monkeypatch: pytest.MonkeyPatch) -> None:
    version = m.PROTOCOL_VERSION
    made = _client(other_build(core_module, monkeypatch, PROTOCOL_VERSION=version + client))
    answer = _answer(made, monkeypatch, version + leader)
    assert isinstance(answer, m.Welcome) and answer.version == version + min(client, leader)
    assert made.on_greeting(answer) and made.connected


def test_a_client_that_is_too_old_is_told_what_the_leader_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    version = m.PROTOCOL_VERSION
    made = _client(core_module)
    answer = _answer(made, monkeypatch, version + 1, version + 1)
    assert isinstance(answer, m.Failed) and answer.errno == errno.EPROTONOSUPPORT
    with pytest.raises(core_module.GreetingRefused, match=f"protocol {version}; this daemon speaks {version + 1}"):
        made.on_greeting(answer)


def test_a_client_leaves_a_leader_that_is_too_old_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    version = m.PROTOCOL_VERSION
    build = other_build(core_module, monkeypatch, PROTOCOL_VERSION=version + 1, PROTOCOL_OLDEST=version + 1)
    made = _client(build)
    with pytest.raises(build.GreetingRefused, match=f"protocol {version}; this process speaks {version + 1}"):
        made.on_greeting(_answer(made, monkeypatch, version))
