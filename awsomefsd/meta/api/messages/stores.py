"""The questions about stores of objects, and the answers."""

from __future__ import annotations

from awsomefsd.base.types import StoreInfo
from awsomefsd.meta.api.messages.base import Message


class ListStores(Message, tag=210):
    """Answered by Stores."""


class GetStoreSecret(Message, tag=211):
    """What the cluster keeps of a store's credentials and keys, veiled.  Answered by VeiledSecret; ENOENT without such a store."""

    store: int


# --- replies ------------------------------------------------------------------------------------------------------------------
class Stores(Message, tag=212):
    """In the order in which they were added."""

    stores: list[StoreInfo]


class VeiledSecret(Message, tag=213):
    """`secret` b"": none is kept, or it did not outlive a recovery."""

    secret: bytes

    def __repr__(self) -> str:
        return "VeiledSecret(…)"
