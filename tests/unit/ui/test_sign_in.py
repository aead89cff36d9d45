"""Codes sign in once, wrong ones are bounded, and sessions end."""

from __future__ import annotations

import pytest

from awsomefsd.ui import sign_in
from awsomefsd.ui.sign_in import OPERATOR, READER, SignIn, TooManyTries

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_code_signs_in_once(clock: Clock) -> None:
    used: list[str] = []
    door = SignIn(used=used.append, clock=clock)
    code = door.make_code()
    assert len(code.replace("-", "")) * 5 == sign_in.CODE_BYTES * 8 == 80
    cookie = door.begin(f"  {code.lower()} ", HERE)
    assert door.role_of(cookie) and used == [HERE], "as people type it"
    assert not door.begin(code, HERE) and used == [HERE]
    assert not door.role_of(cookie + "x") and not door.role_of("") and not door.role_of("\udc80")


def test_codes_and_sessions_end(clock: Clock) -> None:
    door = SignIn(clock=clock)
    late, good = door.make_code(), door.make_code()
    cookie = door.begin(good, HERE)
    clock.now += sign_in.CODE_S + 1
    assert not door.begin(late, HERE) and door.role_of(cookie)
    clock.now += sign_in.SESSION_IDLE_S
    assert not door.role_of(cookie), "nobody used it"
    cookie = door.begin(door.make_code(), HERE)
    for _ in range(int(sign_in.SESSION_S / sign_in.SESSION_IDLE_S) * 2 - 1):
        clock.now += sign_in.SESSION_IDLE_S / 2
        assert door.role_of(cookie)
    clock.now += sign_in.SESSION_IDLE_S / 2
    assert not door.role_of(cookie), "used all the time, and over"
    cookie = door.begin(door.make_code(), HERE)
    door.end(cookie)
    assert not door.role_of(cookie)


def test_who_tries_codes_has_to_wait_and_who_has_one_need_not(clock: Clock) -> None:
    """A stranger at the same address (another user of the machine, a page of another site, a NAT) keeps nobody out."""
    door = SignIn(clock=clock)
    here, there = door.make_code(), door.make_code()
    for _ in range(sign_in.CODES_TRIED_MAX):
        assert not door.begin("AAAA-AAAA-AAAA-AAAA", HERE)
    for first in (True, False, False):
        with pytest.raises(TooManyTries, match="wait 60 s") as refused:
            door.begin("wrong", HERE)
        assert refused.value.first == first
    assert door.begin(there, THERE)
    assert door.begin(here, HERE)
    assert not door.begin("wrong", HERE), "the right one ends the count"
    for _ in range(sign_in.CODES_TRIED_MAX):
        clock.now += sign_in.TRY_S
        assert not door.begin("wrong", HERE), "one more is one, not one more than five"


def test_one_machine_with_many_addresses_is_one(clock: Clock) -> None:
    door = SignIn(clock=clock)
    for number in range(sign_in.CODES_TRIED_MAX):
        door.begin("wrong", f"2001:db8::{number:x}")
    with pytest.raises(TooManyTries):
        door.begin("wrong", "2001:db8::ffff")


def test_nothing_grows_without_end(clock: Clock) -> None:
    door = SignIn(clock=clock)
    first = door.make_code()
    for _ in range(sign_in.CODES_MAX):
        last = door.make_code()
    assert not door.begin(first, HERE) and len(door._codes) == sign_in.CODES_MAX
    oldest = door.begin(last, HERE)
    for _ in range(sign_in.SESSIONS_MAX):
        assert door.begin(door.make_code(), HERE)
    assert not door.role_of(oldest) and len(door._sessions) == sign_in.SESSIONS_MAX
    for number in range(sign_in.SOURCES_MAX + 10):
        door.begin("wrong", f"10.0.{number >> 8}.{number & 255}")
    assert len(door._tries) == sign_in.SOURCES_MAX


def test_neither_code_nor_cookie_is_kept(clock: Clock) -> None:
    door = SignIn(clock=clock)
    code = door.make_code()
    cookie = door.begin(door.make_code(), HERE)
    held = repr(vars(door))
    assert code not in held and code.replace("-", "") not in held and cookie not in held


def test_a_session_has_the_role_of_its_code(clock: Clock) -> None:
    door = SignIn(clock=clock)
    reader, operator = door.begin(door.make_code(), HERE), door.begin(door.make_code(OPERATOR), HERE)
    assert (door.role_of(reader), door.role_of(operator), door.role_of("")) == (READER, OPERATOR, "")
    door.end(operator)
    assert door.role_of(operator) == ""
