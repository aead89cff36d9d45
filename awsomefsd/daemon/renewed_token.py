"""A node that comes later, in Kubernetes: it joins with the token that somebody renews in a file (kubernetes/node_keeper.py).

The file is a Secret that kubelet mounts.  It is empty until the cluster has formed, and kubelet replaces its content within a minute or
two of a change.  So it is read anew at each try, and no refusal ends the daemon: a token that has expired or is used up has a successor
soon.

The configured token comes second.  It founds the cluster while the file is empty; when the file gets a token meanwhile, others have founded
it, and this node gives founding up and joins.  A token of another cluster than the configured one is left alone: it is of an installation
that was here before, and its cluster must not get the nodes of the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import trio

from awsomefsd.base.errors import AlreadyExists, Error
from awsomefsd.base.limits import TOKEN_BYTES_MAX
from awsomefsd.cluster.pki import founding_token, token
from awsomefsd.cluster.pki.token_text import TokenError
from awsomefsd.daemon.way_in import WAITS, Work

logger = logging.getLogger(__name__)
LOOK_S = 1.0
AGAIN_S = 5.0


class RenewedToken:
    """The file at `path`; `configured` is the text of the configured token, "" if there is none."""

    def __init__(self, path: Path, configured: str) -> None:
        self._path = path
        self._configured = configured
        self.trouble = ""  # why there is no token that this node may use

    def read(self) -> str:
        """Returns the text of the token that the file has now, "" if it has none for this node.

        Raises TokenError if the configured token is none.
        """
        cluster = _cluster(self._configured)
        try:
            text = self._path.read_bytes()[: TOKEN_BYTES_MAX + 1].decode(errors="replace").strip()
            found = token.parse(text) if text else None
        except OSError as err:
            self.trouble = f"{self._path} cannot be read: {err.strerror}"
        except TokenError as err:
            self.trouble = f"{self._path}: {err}"
        else:
            if found is not None and cluster in ("", found.cluster_uuid):
                return text
            self.trouble = f"{self._path} is empty until the cluster has formed"
            if found is not None:
                other = f"has a token of cluster {found.cluster_uuid}, and the configured token is of {cluster}"
                self.trouble = f"{self._path} {other}; delete the Secret's token"
        return ""


def _cluster(configured: str) -> str:
    """Returns the cluster of a token, "" without one."""
    if not configured:
        return ""
    if founding_token.is_founding(configured):
        return founding_token.parse(configured).cluster_uuid
    return token.parse(configured).cluster_uuid


def work(file: RenewedToken, join: Callable[[str], object], configured: Work | None, entered: Callable[[], bool]) -> Work:
    """Returns the work that joins with the file's token, and meanwhile does that of the configured one.

    `join` blocks, for some seconds at most; `entered` returns True when this node is in a cluster.  An error of the configured token ends
    the daemon as it would without a file: it starts again, and reads both anew.
    """
    said: list[str] = []

    async def run() -> None:
        while not entered():
            if not (text := file.read()):
                said[:] = []
                await _until_there(file, configured, entered)
                continue
            try:
                await trio.to_thread.run_sync(join, text, abandon_on_cancel=True)
                return
            except AlreadyExists:
                return
            except Error as err:
                said[:] = [f"waiting: {err}", "the token is read anew at each try; it is renewed while the cluster's controller runs"]
                await trio.sleep(AGAIN_S)

    def words() -> list[str]:
        return list(said) or [*(configured.words() if configured else [WAITS]), *([file.trouble] if file.trouble else [])]

    return Work(run, words)


async def _until_there(file: RenewedToken, configured: Work | None, entered: Callable[[], bool]) -> None:
    """Returns when the file has a token, or when this node is in a cluster: by the work of the configured token, or by somebody's hand."""
    failed: list[Error] = []
    async with trio.open_nursery() as nursery:
        if configured is not None:
            nursery.start_soon(_run, configured, failed, nursery.cancel_scope)
        while not (file.read() or entered()):
            await trio.sleep(LOOK_S)
        nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]


async def _run(configured: Work, failed: list[Error], scope: trio.CancelScope) -> None:
    try:
        await configured.run()
    except Error as err:  # not through the nursery, which would wrap it
        failed.append(err)
    scope.cancel()
