"""Runs in the virtual machine, on the host's Python: disks under dm-log-writes, a node on them, the programs, then the power goes off.

Both disks become one device, for which one log is kept, and are taken apart again on top of it: so there is one order of all writes and
flushes, of the device and of the filesystem with the state directory.  What programs begin and what they have finished goes into that
log as marks, by the ioctl of `dmsetup message`; a mark stands behind every flush that had ended when it was made.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.crash.vm import workload

DM_TARGET_MSG = 3 << 30 | 312 << 16 | 0xFD << 8 | 0x0E
SECTOR = 512
START_S = 400.0  # an emulated processor on a busy host


def say(words: str) -> None:
    print(f"guest: {words}", flush=True)


class Marks:
    """Entries of the log of writes; each is one ioctl.  A text has no spaces."""

    def __init__(self, device: str) -> None:
        self._device = device.encode()
        self._control = os.open("/dev/mapper/control", os.O_RDWR)
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        message = struct.pack("<Q", 0) + f"mark {text}".encode() + b"\0"
        size = 312 + len(message)
        head = struct.pack("<3I I I I i I I I Q 128s 129s 7x", 4, 0, 0, size, 312, 0, 0, 0, 0, 0, 0, self._device, b"")
        with self._lock:
            fcntl.ioctl(self._control, DM_TARGET_MSG, bytearray(head + message))


def disks(data: str, state: str, log: str) -> None:
    sizes = [int(Path(f"/sys/block/{name}/size").read_text()) for name in (data, state)]
    tables = {
        "both": f"0 {sizes[0]} linear /dev/{data} 0\n{sizes[0]} {sizes[1]} linear /dev/{state} 0",
        "logged": f"0 {sum(sizes)} log-writes /dev/mapper/both /dev/{log}",
        "data": f"0 {sizes[0]} linear /dev/mapper/logged 0",
        "state": f"0 {sizes[1]} linear /dev/mapper/logged {sizes[0]}",
    }
    for name, table in tables.items():
        words = ["dmsetup", "create", name, "--noudevsync", "--noudevrules"]
        subprocess.run(words, input=table, text=True, check=True, env=dict(os.environ) | {"DM_DISABLE_UDEV": "1"})


def node(directory: Path, command: list[str], environment: dict[str, str]) -> None:
    """The supervisor and the mount: another boot, so that of the host is forgotten."""
    for part in ("run", "log", "mnt", "state"):
        (directory / part).mkdir()
    (directory / "disk").symlink_to("/dev/mapper/data")
    subprocess.run(["mount", "-t", "ext4", "/dev/mapper/state", str(directory / "state")], check=True)
    with (directory / "log" / "supervisor.log").open("wb") as log:
        subprocess.Popen([*command, "supervise", "--log-dir", str(directory / "log")], stdout=log, stderr=log, env=environment, cwd="/")
    deadline = time.monotonic() + START_S
    while not (directory / "run" / "admin.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    say("the daemon is there")
    while not os.path.ismount(directory / "mnt"):
        done = subprocess.run(
            [*command, "mount", "demo", str(directory / "mnt")], capture_output=True, text=True, env=environment, check=False
        )
        if done.returncode and time.monotonic() > deadline:
            raise TimeoutError(f"no mount: {done.stderr}")


def work(mark: Marks, seed: int, program: int, steps: int, mountpoint: Path, failed: list[str]) -> None:
    try:
        for number, step in enumerate(workload.steps_of(seed, program, steps)):
            mark(f"begin:{program}:{number}")
            workload.do(step, str(mountpoint / str(program)), number)
            mark(f"done:{program}:{number}")
            if number % 20 == 0:
                say(f"program {program} at step {number} of {steps}")
    except BaseException as err:
        failed.append(f"program {program}: {type(err).__name__}: {err}")


def main(settings: dict) -> None:
    directory = Path(settings["directory"])
    disks("vda", "vdb", "vdc")
    say("disks are there")
    os.environ["TMPDIR"] = str(directory)
    node(directory, settings["command"], dict(os.environ) | settings["environment"])
    say("mounted")
    mark = Marks("logged")
    mark("start")
    failed: list[str] = []
    words = [(mark, settings["seed"], program, settings["steps"], directory / "mnt", failed) for program in range(settings["programs"])]
    threads = [threading.Thread(target=work, args=word) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mark("end")
    subprocess.run(["sync"], check=False)  # the log is written behind the writes: something flushes it after the last mark
    time.sleep(2)
    for row in failed:
        say(f"FAILED {row}")
    say("failed" if failed else "complete")


if __name__ == "__main__":
    directory = Path(json.loads(sys.argv[1])["directory"])
    try:
        main(json.loads(sys.argv[1]))
    except BaseException as err:
        say(f"FAILED {type(err).__name__}: {err}")
        for path in sorted((directory / "log").glob("*")):
            say(f"{path.name}: {path.read_text(errors='replace')[-3000:]}")
