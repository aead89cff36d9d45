"""The client by which the daemon, the CLI and the supervisor ask the keeper.

Each request has a connection of its own, so callers do not notice that a keeper was replaced in between.  A request that a dying keeper
did not answer raises Unavailable; every request may be sent again (a mount names its id, so asking twice mounts once).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.limits import UMOUNT_FLUSH_MS_MAX
from awsomefsd.keeper import wire as wire

ANSWER_S_MAX = 10.0
LOOK_S_MAX = 3.0  # for somebody who only looks: a status, a scrape or a doctor has more to ask than the keeper
MOUNT_S_MAX = 60.0
FLUSH_S_MAX = UMOUNT_FLUSH_MS_MAX / 1000 + 10.0
REPLACE_S_MAX = 150.0  # above the keeper's own limits for loading, flushing and taking over
UMOUNT_S_MAX = 2 * UMOUNT_FLUSH_MS_MAX / 1000 + 20.0  # a flush before and one after umount2


class KeeperClient:
    """Asks the keeper of a run directory.  Every method blocks for the answer, up to its time limit; any thread may call.

    Every method raises as `ask`: Unavailable without a keeper or an answer, FsError with the keeper's words and errno when it refuses.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self._path = Path(run_dir).absolute() / wire.SOCKET_NAME

    def ask(self, op: str, timeout_s: float = ANSWER_S_MAX, request_id: str = "", **fields: Any) -> wire.Message:
        """Returns the answer to one request, an object with the fields that its `op` has.

        Raises Unavailable without a keeper or without an answer in `timeout_s`, FsError with the keeper's words and errno for a refusal.
        """
        request = {"op": op, "request_id": request_id or os.urandom(8).hex(), **fields}
        try:
            with wire.connect(self._path, timeout_s) as sock:
                wire.send(sock, request)
                received = wire.receive(sock)
        except TimeoutError:
            raise Unavailable(f"the keeper did not answer {op} within {timeout_s:.0f} s") from None
        except OSError as error:
            raise Unavailable(f"no keeper at {self._path} ({error.strerror}): start `awsomefsd keeper`") from None
        if received is None:
            raise Unavailable(f"the keeper ended before it answered {op}; ask again")
        answer, fds = received
        wire.close_all(fds)
        if not answer.get("ok"):
            raise FsError(int(answer.get("errno") or errno.EIO), str(answer.get("error") or f"the keeper refused {op} and gave no reason"))
        return answer

    def mount(
        self,
        mount: str,
        dir: str,
        source: str,
        *,
        options: Sequence[str] = (),
        fuse_options: str = "allow_other,default_permissions",
        readahead_kib: int = 0,
        memfds: Mapping[str, int] | None = None,
        config: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = MOUNT_S_MAX,
        request_id: str = "",
    ) -> wire.Message:
        """Mounts `source` at `dir`, and returns {"pid", "dir", "device"} once its worker is ready.

        The same id again gives the same mount.
        """
        fields: dict[str, Any] = {"mount": mount, "dir": os.path.abspath(dir), "source": source, "options": list(options)}
        fields |= {"fuse_options": fuse_options, "readahead_kib": readahead_kib, "memfds": dict(memfds or {})}
        fields |= {"config": dict(config or {}), "env": dict(env or {}), "timeout_ms": int(timeout_s * 1000)}
        if argv is not None:
            fields["argv"] = list(argv)
        # The keeper's own limit ends first, and it undoes the mount; its search for the directory comes on top.
        return self.ask("mount", timeout_s + 2 * ANSWER_S_MAX, request_id, **fields)

    def attach(self, mount: str, dir: str, *, options: Sequence[str] = ()) -> wire.Message:
        """Mounts what is served under that mount id at one more directory, with these flags; returns {"pid", "dir", "device"}.

        Raises FsError, with ENOTCONN when nobody has it mounted any more.
        """
        return self.ask("attach", 2 * ANSWER_S_MAX, mount=mount, dir=os.path.abspath(dir), options=list(options))

    def remount(self, mount: str, dir: str, *, options: Sequence[str], config: Mapping[str, Any], readahead_kib: int = 0) -> None:
        """Gives the directory `dir` of that mount other options; `readahead_kib` 0 leaves the read-ahead of the mount.

        `config` is for the workers to come, where `dir` is the mount's first directory.  With `ro` it blocks for a flush as well.
        Raises FsError, with EBUSY while files are open for writing.
        """
        fields: dict[str, Any] = {"options": list(options), "config": dict(config), "readahead_kib": readahead_kib}
        self.ask("remount", FLUSH_S_MAX, mount=mount, dir=os.path.abspath(dir), **fields)

    def umount(
        self, target: str, *, dir: str = "", force: bool = False, force_flush_ms: int = 5_000, request_id: str = ""
    ) -> wire.Message:
        """Flushes and unmounts a directory or a mount id, and returns {"flushed", "detached"}.

        `dir`, with a mount id: that one of its directories.
        Detached: still mounted elsewhere, and served.  With `force` a flush may take `force_flush_ms`, then the connection is aborted.
        """
        fields: dict[str, Any] = {"force": force, "flush_ms": force_flush_ms}
        if dir:
            fields["dir"] = dir
        return self._of_target("umount", target, UMOUNT_S_MAX, request_id, **fields)

    def flush(self, target: str, *, request_id: str = "") -> wire.Message:
        """Makes everything durable that was written to a mount (a directory or a mount id)."""
        return self._of_target("flush", target, FLUSH_S_MAX, request_id)

    def _of_target(self, op: str, target: str, timeout_s: float, request_id: str, **fields: Any) -> wire.Message:
        if "/" not in target and set(target) <= set("0123456789abcdef") and target:
            return self.ask(op, timeout_s, request_id, mount=target, **fields)
        dir = os.path.abspath(target)
        try:
            return self.ask(op, timeout_s, request_id, dir=dir, **fields)
        except FsError as error:
            real = os.path.realpath(dir)
            if error.errno != errno.ENOENT or real == dir:
                raise
            return self.ask(op, timeout_s, request_id, dir=real, **fields)

    def list(self, timeout_s: float = ANSWER_S_MAX) -> list[dict[str, Any]]:
        """Returns the mounts, each with mount, dir, source, device, options, config, state, pid, workers, deaths, last_error."""
        return list(self.ask("list", timeout_s)["mounts"])

    def ping(self, timeout_s: float = ANSWER_S_MAX) -> wire.Message:
        """Returns {"pid", "version", "home", "mounts"} of the keeper; "mounts" is their number."""
        return self.ask("ping", timeout_s)

    def upgrade(self, argv: Sequence[str] = (), env: Mapping[str, str] | None = None) -> wire.Message:
        """Makes the keeper exec the program that is installed now, or `argv`; the new program answers, with its pid and version."""
        return self.ask("upgrade", timeout_s=MOUNT_S_MAX, argv=list(argv), env=dict(env or {}))

    def replace(self, mount: str, argv: Sequence[str], env: Mapping[str, str]) -> wire.Message:
        """Makes a worker of another program serve a mount, and returns {"pid", "version"} once it does."""
        return self.ask("replace", REPLACE_S_MAX, mount=mount, argv=list(argv), env=dict(env))

    def warm(self, argv: Sequence[str], env: Mapping[str, str]) -> bool:
        """Has the program of workers loaded before one is needed; returns True if it is loaded already."""
        return bool(self.ask("warm", argv=list(argv), env=dict(env))["ready"])

    def stop(self, *, umount: bool = False, force: bool = False) -> None:
        """Ends the keeper; workers stay, unless `umount` unmounts everything first (which fails, and ends nothing, if a mount is busy)."""
        self.ask("stop", UMOUNT_S_MAX if umount else ANSWER_S_MAX, umount=umount, force=force)
