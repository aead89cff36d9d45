"""What is sent to make the kernel forget."""

from __future__ import annotations

import inspect
import socket
import struct
from typing import Any

from awsomefsd.fuse import abi
from awsomefsd.fuse.notify import Notifier

CALLS: dict[str, tuple[Any, ...]] = {
    "invalidate_inode": (7,),
    "drop_pages": (7, 0, 10, None),
    "invalidate_all": ([7, 8],),
    "forget_attributes": (7,),
    "forget_names": (),
    "forget_told": ([7, 8], True),
    "forget_pages": (7,),
}
SEND_NOTHING = {"flushed", "close"}


def test_no_name_is_made_invalid_by_itself() -> None:
    """INVAL_ENTRY waits for the lock of its directory, and detaches what is mounted below the name."""
    public = {name for name, _ in inspect.getmembers(Notifier, inspect.isfunction) if not name.startswith("_")}
    assert public == {*CALLS, *SEND_NOTHING}, "each way to send something is tried here"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notifier = Notifier(theirs.fileno())
    try:
        sent: dict[str, set[int]] = {}
        for name, arguments in CALLS.items():
            getattr(notifier, name)(*arguments)
            assert notifier.flushed(60)
            ours.setblocking(False)
            sent[name] = set()
            while True:
                try:
                    sent[name].add(struct.unpack_from("<Ii", ours.recv(200))[1])
                except BlockingIOError:
                    break
        assert all(codes for codes in sent.values()), sent
        assert set.union(*sent.values()) == {abi.Notify.INVAL_INODE, abi.Notify.INC_EPOCH}, sent
    finally:
        notifier.close()
        ours.close()
        theirs.close()
