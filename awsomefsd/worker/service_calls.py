"""Requests to the metadata service by parts of a worker that may block for the answer."""

from __future__ import annotations

from typing import Any

from awsomefsd.base.wait import block_on
from awsomefsd.io.file.reservation import Uniques
from awsomefsd.meta.client.metadata import Metadata


class ServiceCalls:
    """Any thread but the client's own may call; each call blocks until its answer is there, also without a daemon."""

    def __init__(self, client: Metadata, uniques: Uniques) -> None:
        self._client = client
        self._uniques = uniques

    def ask(self, body: Any) -> Any:
        """Returns the reply to one request that changes nothing.  Raises the Error that the service answers."""
        return block_on(self._client.ask(body))

    def propose(self, command: Any) -> Any:
        """Makes one change, under a request id of the worker's own; returns its result.  Raises the Error that the service answers."""
        unique = self._uniques.next_background_unique()
        try:
            return block_on(self._client.propose(command, unique))
        finally:
            self._client.ack(unique)
