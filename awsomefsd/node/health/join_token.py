"""The join token that somebody renews in a file (daemon/renewed_token.py): why a machine that comes later could not join with it.

A token is replaced when half of its life is gone (kubernetes/join_secret.py): one with less than LIFE_LEFT of it is not renewed any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from awsomefsd.base.limits import TOKEN_BYTES_MAX
from awsomefsd.cluster.pki import token
from awsomefsd.cluster.pki.token_text import TokenError

LATE_S = 600.0  # after a node has started: until then the first token may be on its way
LIFE_LEFT = 1 / 4


class KnownToken(Protocol):
    """What the cluster knows of a token."""

    @property
    def id(self) -> str: ...
    @property
    def expires_ms(self) -> int: ...
    @property
    def created_ms(self) -> int: ...
    @property
    def uses_left(self) -> int: ...
    @property
    def revoked(self) -> bool: ...


def trouble(path: Path, cluster: str, tokens: Callable[[], Iterable[KnownToken]], now_ms: int) -> str:
    """Returns what is wrong with the token in the file, "" if it will do.

    `tokens` returns those of the cluster, or none where they are not known: then the token's own words have to do.
    """
    try:
        text = path.read_bytes()[: TOKEN_BYTES_MAX + 1].decode(errors="replace").strip()
        held = token.parse(text) if text else None
    except FileNotFoundError:
        held = None
    except OSError as err:
        return f"{path} cannot be read: {err.strerror}"
    except TokenError as err:
        return f"{path}: {err}"
    if held is None:
        return f"{path} has none"
    if held.cluster_uuid != cluster:
        return f"the one in {path} is of another cluster, {held.cluster_uuid}"
    if held.expires_ms <= now_ms:
        return f"the one in {path} expired {_hours(now_ms - held.expires_ms)} ago"
    known = list(tokens())
    state = next((one for one in known if one.id == held.id), None)
    return f"the cluster does not know the one in {path}" if known and state is None else _of_state(path, state, now_ms)


def _of_state(path: Path, state: KnownToken | None, now_ms: int) -> str:
    if state is None:
        return ""
    if state.revoked:
        return f"the one in {path} was revoked"
    if state.uses_left == 0:
        return f"the one in {path} is used up"
    if state.expires_ms - now_ms < (state.expires_ms - state.created_ms) * LIFE_LEFT:
        return f"the one in {path} expires in {_hours(state.expires_ms - now_ms)} and was not renewed"
    return ""


def _hours(ms: int) -> str:
    return f"{ms / 3_600_000:.1f} hours"
