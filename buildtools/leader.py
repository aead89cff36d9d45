"""Who leads a cluster, asked of the metadata services themselves: one question on meta.sock, much cheaper than a CLI call.

As a program, ``leader.py DIR…``: the pid of the daemon that leads, nothing while nobody does; that is what LEADER_PID in D/env runs.  A
leader that was cut off or has just woken may still say that it leads; the newest term is believed.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
if str(CHECKOUT) not in sys.path:
    sys.path.insert(0, str(CHECKOUT))

from awsomefsd.base.codec import encode  # noqa: E402
from awsomefsd.base.frames import FrameReader, frame  # noqa: E402
from awsomefsd.meta.api import messages as m  # noqa: E402
from awsomefsd.meta.net import traffic  # noqa: E402
from buildtools import procs  # noqa: E402
from buildtools.say import BuildError  # noqa: E402

ANSWER_S = 1.0  # a node that is stopped does not answer
COUNTS_S = 60.0  # of a node that runs


def figures(path: Path, answer_s: float = ANSWER_S) -> dict[str, int | float | str]:
    """What the metadata service behind this socket says of itself; {} if it does not answer."""
    import msgspec

    decode = msgspec.msgpack.Decoder(m.Answer).decode
    reader = FrameReader()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(answer_s)
        try:
            sock.connect(str(path))
            asked = m.RequestEnvelope(1, m.Hello(m.PROTOCOL_VERSION, 0)), m.RequestEnvelope(2, m.GetStatus())
            sock.sendall(b"".join(frame(encode(one)) for one in asked))
            while data := sock.recv(1 << 16):
                for raw in reader.feed(data):
                    reply = decode(raw).reply
                    if isinstance(reply, m.Status):
                        return reply.figures
        except OSError:
            pass
    return {}


def leading_term(path: Path) -> int:
    """The term in which it leads, 0 if it does not."""
    said = figures(path)
    return max(int(said.get("term", 0)), 1) if said.get("leading") == 1 else 0


def requests(path: Path) -> dict[str, int]:
    """How many requests of each kind it took while it led.  It has to run: nothing is no count, and would be taken for one."""
    prefix = f"{traffic.REQUESTS}:"
    said = figures(path, COUNTS_S)
    if not said:
        raise BuildError(f"nobody says at {path} how many requests there were")
    return {name.removeprefix(prefix): int(value) for name, value in said.items() if name.startswith(prefix)}


def main(directories: list[str]) -> None:
    terms = {directory: leading_term(Path(directory) / "run" / "meta.sock") for directory in directories}
    best = max(terms, key=lambda directory: terms[directory], default="")
    if best and terms[best]:
        sys.stdout.writelines(f"{pid}\n" for pid in procs.pids(best, "daemon")[:1])


if __name__ == "__main__":
    main(sys.argv[1:])
