"""The loss of a node's local disk: its state directory is deleted, and the cluster comes back from the device alone.

Void if nothing was running, or too few files were fsynced before the loss.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from buildtools.nodes import Node, await_true
from tests.crash.test_machine_death import confirmed, write_until, wrong_files

ROUNDS = 3
FILES_MIN = 60


def durable_index(node: Node) -> tuple[int, int]:
    """(up to which entry the device has the log, the last applied one)."""
    figures = node.ask("status", accept=(0, 3))["figures"]
    return int(figures["checkpoint_durable"]), int(figures["applied"])


def await_durable(node: Node) -> None:
    """What is applied now is on the device."""
    _, applied = durable_index(node)
    await_true("the tail on the device", lambda: durable_index(node)[0] >= applied, 60, 0.1)


def recovered(node: Node) -> dict:
    report = node.ask("device", "recover", str(node.disk), "--confirm-nobody-writes", timeout_s=120)
    assert report["done"] and report["faults"] == [] and report["missing_devices"] == []
    node.cli("fsck", timeout_s=120)
    return report


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_a_node_comes_back_from_its_device_alone(make_node, figures, seed, tmp_path):
    choose = random.Random(seed)
    node = make_node()
    directory = node.mountpoint / "fsynced"
    directory.mkdir()
    manifest = tmp_path / "manifest"
    lost = 0
    for number in range(ROUNDS):
        writer = write_until(directory, manifest, seed + number, FILES_MIN)
        try:
            await_durable(node)
            promised = confirmed(manifest)  # what was told before this moment; what comes now may be lost
            await_durable(node)
            time.sleep(choose.random() * 1.5)  # so that the loss hits a batch of the tail anywhere
            assert node.kill_everything()
            node.detach_mount()
        finally:
            writer.kill()
            writer.wait(60)
        shutil.rmtree(node.state)
        assert "--confirm-nobody-writes" in node.cli_error("device", "recover", str(node.disk))
        report = recovered(node)
        node.up()
        everything = confirmed(manifest)
        assert len(promised) >= FILES_MIN, "void: too few files were on the device"
        assert wrong_files(directory, promised) == []
        later = {name: digest for name, digest in everything.items() if name not in promised}
        wrong = wrong_files(directory, later)
        assert all("missing" in row or "differs" in row for row in wrong)
        lost += len(wrong)
        assert consistent_prefix(directory, list(everything)), "an older file is missing while a newer one is there"
        manifest.write_text(
            "".join(
                f"{name} {digest}\n"
                for name, digest in everything.items()
                if (directory / name).exists() and not wrong_files(directory, {name: digest})
            )
        )
        (directory / f"after-{number}").write_bytes(b"writing goes on")
        assert report["index"] > 0
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)
    figures.append(f"loss of the local disk: {ROUNDS} times, {len(confirmed(manifest))} files there, {lost} of the last moment lost")


def consistent_prefix(directory: Path, names: list[str]) -> bool:
    """The log is cut at one entry: of the files in the order in which they were made, those that are missing are the last ones."""
    there = [(directory / name).exists() for name in names]
    return there == sorted(there, reverse=True)


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_damaged_store_and_journal_are_repaired_in_place(make_node, seed):
    node = make_node()
    (node.mountpoint / "kept").write_bytes(b"x" * 100_000)
    subprocess.run(["sync", str(node.mountpoint / "kept")], check=True)
    await_durable(node)
    node.kill_everything()
    node.detach_mount()
    assert "undamaged" in node.cli_error("device", "recover", str(node.disk), "--in-place")
    store = node.state / "meta" / "store" / "data.mdb"
    store.write_bytes(random.Random(seed).randbytes(store.stat().st_size))
    report = node.ask("device", "recover", str(node.disk), "--in-place")
    assert (report["source"], report["faults"]) == ("device and journal", [])
    assert (node.state / "meta" / "store.aside.1").exists()
    node.up()
    assert (node.mountpoint / "kept").read_bytes() == b"x" * 100_000
    await_durable(node)
    node.kill_everything()
    node.detach_mount()
    shutil.rmtree(node.state / "meta" / "store")
    for path in (node.state / "meta" / "journal").glob("*.journal"):
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(b"rot" * 50)
    report = node.ask("device", "recover", str(node.disk), "--in-place", "--confirm-nobody-writes")
    assert (report["source"], report["faults"]) == ("device", [])
    node.up()
    assert (node.mountpoint / "kept").read_bytes() == b"x" * 100_000
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)


CHURN = r"""
import errno, hashlib, os, random, sys
directory, seed = sys.argv[1], int(sys.argv[2])
choose = random.Random(seed)
names = []
def remove():
    os.unlink(os.path.join(directory, names.pop(choose.randrange(len(names)))))
number = 0
while True:
    data = choose.randbytes(choose.choice((3000, 300_000, 2_000_000)))
    path = os.path.join(directory, "new")
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        name = hashlib.sha256(data).hexdigest()
        os.rename(path, os.path.join(directory, name))
        names.append(name)
        number += 1
        print(number, flush=True)
    except OSError as err:
        if err.errno != errno.ENOSPC or not names:
            raise
        for _ in range(min(len(names), 8)):
            remove()
"""


def await_churn(churn: subprocess.Popen[bytes], out: Path) -> None:
    await_true("churn on a full device", lambda: churn.poll() is not None or out.read_bytes().count(b"\n") >= 120, 120)


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_what_comes_back_to_a_full_device_has_its_bytes(make_node, figures, seed, tmp_path):
    """A nearly full device under churn, killed at any moment: each name that the device brings back has its bytes, though many of the
    segments that it used to name were freed and written again."""
    choose = random.Random(seed)
    node = make_node(size_bytes=130 << 20)
    leased = 0
    for number in range(ROUNDS - 1):
        out = tmp_path / f"churn-{number}"
        for old in node.mountpoint.iterdir():
            if number and choose.random() < 0.5:
                old.unlink()
        with out.open("wb") as said:
            churn = subprocess.Popen([sys.executable, "-c", CHURN, str(node.mountpoint), str(seed + number)], stdout=said)
        try:
            await_churn(churn, out)
            assert churn.poll() is None, "the writer failed: a full device has to give back what was freed"
            figures_now = node.ask("status", accept=(0, 3))["figures"]
            assert figures_now["checkpoint"] == "ok"
            time.sleep(choose.random())
            node.kill_everything()
            node.detach_mount()
        finally:
            churn.kill()
            churn.wait(60)
        leased = int(figures_now["checkpoints_written"])
        shutil.rmtree(node.state)
        recovered(node)
        node.up()
        names = [path for path in node.mountpoint.iterdir() if path.name != "new"]
        assert names, "void: nothing came back"
        for path in names:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, f"{path.name} has other bytes"
    figures.append(f"churn on a full device: {ROUNDS - 1} losses, each file that came back has its bytes; {leased} checkpoints in the last")
