"""Questions of the CSI driver, and their answers."""

from __future__ import annotations

from awsomefsd.base.types import (
    ClaimInfo,
    CsiVolumeInfo,
)
from awsomefsd.meta.api.messages.base import Message


class GetCsiVolumes(Message, tag=100):
    """Records with an id > `after` in their order, at most `count`; or the one with that id or name, if there is one."""

    after: str
    count: int
    id: str = ""
    name: str = ""


class GetClaims(Message, tag=101):
    """Claims of one volume, or (0) all."""

    volume: int = 0


class Claimed(Message, tag=100):
    """`epoch` of the claim: drawn from the same counter as those of sessions."""

    epoch: int


class CsiVolumes(Message, tag=101):
    volumes: list[CsiVolumeInfo]


class Claims(Message, tag=102):
    claims: list[ClaimInfo]
