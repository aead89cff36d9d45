"""The join token in a Secret: when it has to be made anew.  Pure.

The token is as small as the work allows: one role, a number of uses, a short life.  It is replaced when half of its life or of its uses is
gone, so that a pod that starts with the one of a moment ago can still use it; the old one is not revoked and ends by itself.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from awsomefsd.cluster.pki import token
from awsomefsd.cluster.pki.token_text import TokenError

TOKEN_KEY = "token"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The token as it is to be."""

    role: str
    ttl_s: int
    uses: int


class TokenState(Protocol):
    """What the cluster knows of a token."""

    @property
    def id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def expires_ms(self) -> int: ...
    @property
    def uses_left(self) -> int: ...
    @property
    def revoked(self) -> bool: ...


def value(secret: dict[str, Any], key: str) -> str:
    """Returns a value of a Secret as text; "" if it has none, or none that is text."""
    held = (secret.get("data") or {}).get(key) or ""
    try:
        return base64.b64decode(held, validate=True).decode().strip()
    except (binascii.Error, ValueError, TypeError):
        return ""


def with_value(secret: dict[str, Any], key: str, text: str) -> dict[str, Any]:
    """Returns a Secret with one value replaced."""
    data = {**(secret.get("data") or {}), key: base64.b64encode(text.encode()).decode()}
    return {**secret, "data": data}


@dataclass(frozen=True, slots=True)
class Held:
    """What the cluster has: its tokens, the control addresses of its nodes, and the authority that signs now."""

    tokens: Sequence[TokenState]
    controls: Collection[str]
    authority: str


def why_renew(text: str, cluster: Held, wanted: Wanted, now_ms: int) -> str:
    """Returns why a new token is needed, "" if the one of the text will do."""
    if not text:
        return "the Secret has none"
    try:
        held = token.parse(text)
    except TokenError:
        return "what the Secret holds is no join token"
    state = next((one for one in cluster.tokens if one.id == held.id), None)
    if state is None:
        return "the cluster does not know the one of the Secret"
    if state.revoked:
        return "the one of the Secret was revoked"
    if state.role != wanted.role:
        return f"the one of the Secret is for the role {state.role}"
    if state.expires_ms - now_ms < wanted.ttl_s * 1_000 // 2:
        return "half of its life is over"
    if 0 <= state.uses_left * 2 < wanted.uses:
        return "half of its uses are gone"
    if held.pin.hex() != cluster.authority:
        return "the authority that it names signs no more"
    if sum(endpoint in cluster.controls for endpoint in held.endpoints) * 2 < min(len(held.endpoints), len(cluster.controls)):
        return "most nodes that it names are not there any more"
    return ""
