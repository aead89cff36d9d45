"""Actions are an operator's, are asked back, and are calls of the admin API with the target that was shown."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Refused, Unavailable
from awsomefsd.ui.actions import ACTIONS
from awsomefsd.ui.frame import NAVIGATION
from awsomefsd.ui.sign_in import OPERATOR
from awsomefsd.ui.web import PageResponse
from tests.unit.ui.test_site import Visitor


def target_of(name: str) -> str:
    return "7" if name.endswith("-device") else STRANGE


STRANGE = "/mnt/<b>{0}&sure=yes\"'"


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    made = Visitor()
    made.daemon.status.devices.add(device=7, uuid="u", state="ok")
    made.daemon.status.mounts.add(directory=STRANGE, volume="v", state="serving")
    yield made
    made.history.close()


def post(visitor: Visitor, name: str, target: str = "", sure: bool = True, **headers: str) -> PageResponse:
    form = {"action": name, "target": target} | ({"sure": "yes"} if sure else {})
    return visitor.ask("/action", "POST", urlencode(form), **headers)


@pytest.mark.parametrize("name", ACTIONS)
def test_each_is_asked_back_and_then_done(visitor: Visitor, name: str) -> None:
    visitor.enter(role=OPERATOR)
    asked = post(visitor, name, target_of(name), sure=False)
    assert asked.status == 200 and b'name="sure"' in asked.body and not visitor.daemon.done
    assert b"<b>" not in asked.body and b"<script" not in asked.body, "it is not loaded again by itself"
    done = post(visitor, name, target_of(name))
    assert done.status == 200 and b"<h1>Done</h1>" in done.body and b"<b>" not in done.body
    ((rpc, fields),) = visitor.daemon.done
    assert rpc == ACTIONS[name].rpc and fields == ACTIONS[name].fields(target_of(name))
    assert f'href="{ACTIONS[name].page}"'.encode() in done.body and ACTIONS[name].page in dict(NAVIGATION)


def test_an_operator_is_offered_what_fits_and_a_reader_nothing(visitor: Visitor) -> None:
    visitor.enter()
    for page, _ in NAVIGATION:
        answer = visitor.ask(page)
        assert b"/action" not in answer.body and b"changes nothing" in answer.body, page
    visitor.enter(role=OPERATOR)
    offered = {page: visitor.ask(page).body for page, _ in NAVIGATION}
    assert b'value="drain-device"' in offered["/devices"] and b'value="undrain-device"' not in offered["/devices"]
    assert b'value="flush"' in offered["/mounts"] and b"<b>" not in offered["/mounts"]
    assert b'value="scrub"' in offered["/health"] and b"signed in as an operator" in offered["/"]
    visitor.daemon.status.devices[0].draining = True
    visitor.readings._kept.clear()
    assert b'value="undrain-device"' in visitor.ask("/devices").body


def test_nodes_are_cordoned_or_uncordoned_by_what_they_are(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor.enter(role=OPERATOR)
    found = [pb.Node(node="u1", name="n1", state="active"), pb.Node(node="u2", state="cordoned")]
    monkeypatch.setattr(visitor.daemon, "call", lambda rpc, timeout_s=0, **fields: pb.ListNodesReply(nodes=found))
    body = visitor.ask("/nodes").body
    assert b'value="cordon"><input type="hidden" name="target" value="n1"' in body
    assert b'value="uncordon"><input type="hidden" name="target" value="u2"' in body


def test_who_only_reads_changes_nothing(visitor: Visitor) -> None:
    assert post(visitor, "scan").status == 303, "without a session"
    visitor.enter()
    answer = post(visitor, "scan")
    assert answer.status == 403 and b"--operator" in answer.body
    assert not visitor.daemon.done


def test_another_page_changes_nothing(visitor: Visitor) -> None:
    visitor.enter(role=OPERATOR)
    assert post(visitor, "scan", origin="http://evil.example").status == 403
    assert post(visitor, "scan", sec_fetch_site="cross-site").status == 403
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        assert visitor.ask("/action?action=scan&sure=yes", method).status == 405, method
    assert not visitor.daemon.done


def test_what_is_no_action_is_none(visitor: Visitor) -> None:
    visitor.enter(role=OPERATOR)
    wrong = [("drain-device", "/dev/x"), ("drain-device", ""), ("undrain-device", "\u0663"), ("flush", "/a\0"), ("flush", "/\x1b[0m")]
    for name, target in wrong:
        assert post(visitor, name, target).status == 400, target
    for body in ("", "action=", "action=remove&sure=yes", "action=Scan&sure=yes", "action=%ff&sure=yes", "&" * 1_000):
        assert visitor.ask("/action", "POST", body).status == 400, body
    assert not visitor.daemon.done


def test_refusals_and_silence_are_told(visitor: Visitor) -> None:
    visitor.enter(role=OPERATOR)
    visitor.daemon.error = Refused("the only copy of <b> is there")
    answer = post(visitor, "drain-device", "7")
    assert answer.status == 409 and b"Not done" in answer.body and b"the only copy of &lt;b&gt;" in answer.body
    visitor.daemon.error = Unavailable("no answer within 20 s")
    silent = post(visitor, "drain-device", "7")
    assert silent.status == 503 and b"<h1>No answer</h1>" in silent.body, "it may have been done"


def test_the_page_behind_an_action_is_fresh(visitor: Visitor) -> None:
    visitor.enter(role=OPERATOR)
    visitor.ask("/devices")
    before = visitor.daemon.asked.count("GetStatus")
    post(visitor, "scan")
    visitor.ask("/devices")
    assert visitor.daemon.asked.count("GetStatus") == before + 1
