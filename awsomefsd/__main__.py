"""One program, several processes: dispatch by the first word, importing only what that process needs.

`worker`, `forker`, `keeper` and `segments` are matched before anything else is imported: a worker serves within 150 ms and must not know
click, pydantic, trio or gRPC; the keeper lives on the standard library.  Everything else is the command line (cli/main.py).
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    words = sys.argv[1:]
    first = words[0] if words else ""
    if "AWSOMEFSD_FAULTS" in os.environ:
        _inject(words)
    if first == "worker":
        return _worker(words[1:])
    if first == "forker":
        return _forker(words[1:])
    if first == "probe" and len(words) == 2 and words[1].startswith("/"):
        return _probe(words[1])
    if first == "enter-host":
        from awsomefsd.node.pod.enter_host import main as enter_host

        return enter_host(words[1:])
    ours = any(word.startswith("--log-level") for word in words)  # which the command line hands on and does not take
    if first == "keeper" and ours:
        from awsomefsd.keeper.server import main as keeper

        return keeper(words[1:])
    if first == "segments" and "--config-fd" in words:
        from awsomefsd.segments.process import main as segments

        return segments(words[1:])
    if first == "supervise" and ours:
        from awsomefsd.keeper.supervisor import main as supervise

        return supervise(words[1:])
    from awsomefsd.cli.main import run

    return run(words)


def _inject(words: list[str]) -> None:
    """Tests only: faults at the seams of this process."""
    from awsomefsd.daemon.injection import install

    install(next((role for role in ("run", "doctor") if role in words), words[0] if words else ""))


def _worker(words: list[str]) -> int:
    if len(words) != 2 or words[0] != "--keeper-fd" or not words[1].isdecimal():
        sys.stderr.write("awsomefsd worker is started by the keeper; to mount a volume: awsomefsd mount VOLUME DIR\n")
        return 2
    from awsomefsd.worker.process import main as worker

    return worker(int(words[1]))


def _forker(words: list[str]) -> int:
    if len(words) != 2 or words[0] != "--keeper-fd" or not words[1].isdecimal():
        sys.stderr.write("awsomefsd forker is started by the keeper\n")
        return 2
    from awsomefsd.worker.forker import main as forker

    return forker(int(words[1]))


def _probe(directory: str) -> int:
    """For the daemon (mounts.is_dead): the errno of asking for the figures of a filesystem; may hang with its server."""
    try:
        os.statvfs(directory)
    except OSError as error:
        return error.errno or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
