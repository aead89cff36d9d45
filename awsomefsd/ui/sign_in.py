"""The sign-in of the page: codes that are good once, and the sessions that they begin.

A code is made for somebody who may use the admin socket, and printed there; it has 80 random bits, one use, and an end.  It is compared in
constant time.  An address that tries CODES_TRIED_MAX wrong ones within TRY_S is told so: that is for a quiet log, the bits are what keeps
strangers out.  A right code is taken from it all the same: a stranger at the same address (another user of the machine) keeps nobody out.

A code has a role, which its session has too: who reads sees everything, an operator may do what actions.py lists.

A session is a random value in a cookie; only its hash is kept, in memory, so a restart ends all sessions.

Everything is bounded: the oldest code, session or address goes for a new one.  Any thread may call.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import Refused
from awsomefsd.base.sources import source_of

CODE_BYTES = 10
CODE_S = 15 * 60.0
CODES_MAX = 16
CODES_TRIED_MAX = 5
TRY_S = 60.0
SOURCES_MAX = 1_024
SESSION_BYTES = 32
SESSION_S = 12 * 3_600.0
SESSION_IDLE_S = 3_600.0
SESSIONS_MAX = 64
READER, OPERATOR = "reader", "operator"
_GROUP = 4  # characters of a printed code


class TooManyTries(Refused):
    """This address has tried too many codes; the message says for how long it waits.  `first`: of this while, the one for the log."""

    first = False


class SignIn:
    """Codes and sessions.  `code_s`: how long a code is good; `used` is called when one was used, outside of the lock."""

    def __init__(
        self, code_s: float = CODE_S, used: Callable[[str], None] = lambda source: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._code_s = code_s
        self._used = used
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[bytes, tuple[float, str]] = {}  # hash → (end, role), oldest first
        self._sessions: dict[bytes, tuple[float, float, str]] = {}  # hash → (begin, last use, role), oldest first
        self._tries: dict[str, tuple[float, int]] = {}  # source → (begin, wrong codes since), oldest first

    def make_code(self, role: str = READER) -> str:
        """Returns a new code, such as "ABCD-EFGH-IJKL-MNOP", for a session of that role."""
        plain = base64.b32encode(secrets.token_bytes(CODE_BYTES)).decode()
        with self._lock:
            _keep_newest(self._codes, CODES_MAX - 1)
            self._codes[_hash(plain)] = self._clock() + self._code_s, role
        return "-".join(plain[at : at + _GROUP] for at in range(0, len(plain), _GROUP))

    def begin(self, code: str, address: str) -> str:
        """Returns the cookie of a new session, "" if the code is wrong, used, or over.  Raises TooManyTries for one wrong code more."""
        source, now = source_of(address), self._clock()
        tried = _hash("".join(code.split()).replace("-", "").upper())
        with self._lock:
            found = [held for held in self._codes if hmac.compare_digest(held, tried)]
            roles = [role for end, role in map(self._codes.pop, found) if end > now]
            if not roles:
                self._count_wrong(source, now)
                return ""
            self._tries.pop(source, None)
            cookie = secrets.token_urlsafe(SESSION_BYTES)
            _keep_newest(self._sessions, SESSIONS_MAX - 1)
            self._sessions[_hash(cookie)] = now, now, roles[0]
        self._used(address)
        return cookie

    def role_of(self, cookie: str) -> str:
        """Returns the role of the session with this cookie, "" if none goes on.  That counts as a use of it."""
        key, now = _hash(cookie), self._clock()
        with self._lock:
            begin, last, role = self._sessions.get(key, (-SESSION_S, 0.0, ""))
            if now - begin >= SESSION_S or now - last >= SESSION_IDLE_S:
                self._sessions.pop(key, None)
                return ""
            self._sessions[key] = begin, now, role
            return role

    def end(self, cookie: str) -> None:
        with self._lock:
            self._sessions.pop(_hash(cookie), None)

    def _count_wrong(self, source: str, now: float) -> None:
        begin, wrong = self._tries.pop(source, (now, 0))
        if now >= begin + TRY_S:
            begin, wrong = now, 0
        _keep_newest(self._tries, SOURCES_MAX - 1)
        self._tries[source] = begin, wrong + 1
        if wrong >= CODES_TRIED_MAX:
            refusal = TooManyTries(f"{CODES_TRIED_MAX} wrong codes came from here; wait {begin + TRY_S - now:.0f} s")
            refusal.first = wrong == CODES_TRIED_MAX
            raise refusal


def _hash(value: str) -> bytes:
    return hashlib.sha256(value.encode(errors="replace")).digest()


def _keep_newest(held: dict[Any, Any], count: int) -> None:
    while len(held) > count:
        del held[next(iter(held))]
