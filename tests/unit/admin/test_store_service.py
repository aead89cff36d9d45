"""The RPCs about stores: what they tell, what they refuse, how many at once; nothing of them shows a key."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.plain import message_dict
from awsomefsd.admin.store_service import CHECKS_MAX, StoreRpcs, store_message
from awsomefsd.base.errors import Refused
from awsomefsd.base.types import KEPT, OF_ROLE, StoreInfo, StoreOptions
from awsomefsd.node.stores import StoreAsked
from awsomefsd.tier.credentials import Credentials

OPTIONS = StoreOptions(300_000, 86_400_000, "http://h", "r", KEPT, "pem", "", True)
INFO = StoreInfo(1, "cold", "s3://bucket/p", 1, "era", 2, 3, 4, OPTIONS, True)
FINDING = {"tried": "put", "level": "ok", "words": "an object"}
SECRET = "a-secret-of-a-store"


class Context:
    """Of a call; `over`: it has ended already."""

    def __init__(self, over: bool = False) -> None:
        self.over, self.code, self.details = over, None, ""

    def add_callback(self, _end: Callable[[], object]) -> bool:
        return not self.over

    def set_trailing_metadata(self, _rows: Any) -> None:
        pass

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


class Fake:
    """What the node does: two findings, then the store; `refuses` after the first one."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.asked, self.left, self.closed = refuses, [], [], 0

    def _work(self, asked: Any, leave: Any) -> Generator[dict[str, Any], None, StoreInfo]:
        self.asked.append(asked)
        leave(lambda: self.left.append(True))
        try:
            yield FINDING
            if self.refuses:
                raise Refused(self.refuses)
            yield FINDING
            return INFO
        finally:
            self.closed += 1

    def add(self, name: str, url: str, asked: StoreAsked, leave: Any) -> Any:
        return self._work((name, url, asked), leave)

    def change(self, name: str, asked: StoreAsked, leave: Any) -> Any:
        return self._work((name, asked), leave)

    def check(self, name: str, leave: Any) -> Any:
        return self._work(name, leave)

    def check_new(self, url: str, asked: StoreAsked, leave: Any) -> Any:
        return self._work((url, asked), leave)


def rpcs(fake: Fake) -> StoreRpcs:
    return StoreRpcs(fake)  # type: ignore[arg-type]


def settings(**fields: Any) -> pb.StoreSettings:
    return pb.StoreSettings(keys=pb.StoreKeys(key_id="AK", secret=SECRET, token="t"), **fields)


def test_findings_come_before_the_store() -> None:
    fake, context = Fake(), Context()
    request = pb.AddStoreRequest(name="cold", url="s3://bucket/p", settings=settings(endpoint="", rpo_ms=9, sealed=True))
    *findings, last = rpcs(fake).AddStore(request, context)  # type: ignore[arg-type]
    assert [message_dict(one.finding) for one in findings] == [FINDING] * 2 and last.store == store_message(INFO)
    assert fake.asked == [("cold", "s3://bucket/p", StoreAsked(endpoint="", rpo_ms=9, keys=Credentials("AK", SECRET, "t"), sealed=True))]
    assert context.code is None and fake.closed == 1


def test_a_check_is_of_one_store() -> None:
    fake = Fake()
    assert len(list(rpcs(fake).CheckStore(pb.CheckStoreRequest(name="cold"), Context()))) == 2  # type: ignore[arg-type]
    assert len(list(rpcs(fake).CheckStore(pb.CheckStoreRequest(url="/x", settings=pb.StoreSettings(role=True)), Context()))) == 2  # type: ignore[arg-type]
    assert fake.asked == ["cold", ("/x", StoreAsked(role=True))]
    for request in (pb.CheckStoreRequest(), pb.CheckStoreRequest(name="a", url="b")):
        context = Context()
        assert list(rpcs(fake).CheckStore(request, context)) == []  # type: ignore[arg-type]
        assert context.code is grpc.StatusCode.INVALID_ARGUMENT and "by its name, or of another one, by its URL" in context.details


def test_a_refusal_comes_behind_the_findings() -> None:
    fake, context = Fake("no PUT"), Context()
    assert len(list(rpcs(fake).AddStore(pb.AddStoreRequest(), context))) == 1  # type: ignore[arg-type]
    assert context.code is grpc.StatusCode.FAILED_PRECONDITION and context.details == "no PUT"


def test_whoever_leaves_ends_the_work() -> None:
    fake = Fake()
    told = rpcs(fake).CheckStore(pb.CheckStoreRequest(name="cold"), Context(over=True))  # type: ignore[arg-type]
    next(told)
    assert fake.left == [True], "nobody waits any more"
    told.close()  # type: ignore[attr-defined]
    assert fake.closed == 1


def test_no_more_than_a_few_at_once() -> None:
    made = rpcs(Fake())
    request = pb.CheckStoreRequest(name="cold")
    under_way = [made.CheckStore(request, Context()) for _ in range(CHECKS_MAX)]  # type: ignore[arg-type]
    for one in under_way:
        next(one)
    context = Context()
    assert list(made.CheckStore(request, context)) == [] and context.code is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[arg-type]
    assert len(list(under_way[0])) == 1
    assert len(list(made.CheckStore(request, Context()))) == 2  # type: ignore[arg-type]


def test_a_change_says_what_it_was_told() -> None:
    fake = Fake()
    changed = rpcs(fake).SetStore(pb.SetStoreRequest(name="cold", settings=pb.StoreSettings(proxy="", keep_ms=7)), Context())
    assert changed == store_message(INFO) and fake.asked == [("cold", StoreAsked(proxy="", keep_ms=7))]
    context = Context()
    rpcs(fake).SetStore(pb.SetStoreRequest(name="cold", settings=pb.StoreSettings(sealed=True)), context)
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT and "when it is added" in context.details


@pytest.mark.parametrize(
    ("credentials", "has_secret", "said"), [(KEPT, True, "kept"), (KEPT, False, "lost"), (OF_ROLE, False, "role"), ("", False, "")]
)
def test_credentials_are_told_in_a_word(credentials: str, has_secret: bool, said: str) -> None:
    info = replace(INFO, options=replace(INFO.options, credentials=credentials), has_secret=has_secret)
    assert store_message(info).credentials == said
