"""Buckets on servers that others wrote: Versity's gateway (built by Go) and moto (from pip), each installed by its name.

Not in the normal run: the first takes two minutes of CPU to build, the second 300 MiB of packages.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, StoreForeign, StoreRefused
from awsomefsd.tier.s3_store import S3Options, S3Store
from awsomefsd.tier.store import Tries
from awsomefsd.tier.store_check import BAD, check_store
from awsomefsd.tier.store_url import parse_store_url
from buildtools.say import CHECKOUT
from tests.rigs.external_programs import need
from tests.rigs.free_ports import free_ports

pytestmark = pytest.mark.soak
KEY_ID, SECRET = "AKTESTKEY", "test-secret-of-a-server"
GATEWAY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
MOTO = "moto[server]>=5,<6"
TOOLS = CHECKOUT / ".venv" / "tools"
INSTALL_S = 900
READY_S = 60


def installed(words: list[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(words)}: no end within {INSTALL_S} s")
    if done.returncode:
        pytest.skip(f"{' '.join(words)} failed: {done.stderr.strip()[-300:]}")


def gateway(place: Path, port: int) -> list[str]:
    program = TOOLS / GATEWAY.replace("/", "-")
    if not program.exists():
        need("go")
        room = TOOLS / "go-bin"
        room.mkdir(parents=True, exist_ok=True)
        path = f"{Path(str(shutil.which('go'))).parent}:/usr/bin:/bin"
        installed(["go", "install", GATEWAY], {"PATH": path, "HOME": str(Path.home()), "GOBIN": str(room)})
        (room / "versitygw").rename(program)
    (place / "bucket").mkdir()
    return [str(program), "--port", f"127.0.0.1:{port}", "posix", str(place)]


def moto(_place: Path, port: int) -> list[str]:
    folder = TOOLS / "moto"
    if not (folder / "bin" / "moto_server").exists():
        installed([sys.executable, "-m", "venv", str(folder)], dict(os.environ))
        installed([str(folder / "bin" / "pip"), "install", "-q", MOTO], dict(os.environ))
    return [str(folder / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]


@contextlib.contextmanager
def running(words: list[str], port: int, place: Path) -> Iterator[None]:
    environment = dict(os.environ) | {"ROOT_ACCESS_KEY": KEY_ID, "ROOT_SECRET_KEY": SECRET}
    with (place.parent / "server.log").open("wb") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_S
        while server.poll() is None:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                assert time.monotonic() < end, (place.parent / "server.log").read_text()[-2000:]
                time.sleep(0.1)
        assert server.poll() is None, (place.parent / "server.log").read_text()[-2000:]
        yield
    finally:
        server.kill()
        server.wait()


@pytest.mark.timeout(INSTALL_S * 3)
@pytest.mark.parametrize("command", [gateway, moto])
def test_a_server_of_others(
    command: Callable[[Path, int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, figures: list[str]
) -> None:
    pytest.importorskip("obstore", reason="the library for buckets is not installed: pip install 'awsomefsd[store]'")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    place, [port] = tmp_path / "buckets", free_ports(1)
    place.mkdir()
    options = S3Options(f"http://127.0.0.1:{port}")
    with running(command(place, port), port, place):
        if command is moto:  # makes buckets by a PUT, and asks for no signature
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
        store = S3Store(parse_store_url("s3://bucket/some/prefix"), options, Tries(first_pause_s=0.01))
        findings = check_store(store)
        assert not [one for one in findings if one.level == BAD], findings
        uses(store, random.Random(seed))
        other = S3Store(parse_store_url("s3://another-bucket"), options)
        with pytest.raises(StoreForeign, match="NoSuchBucket"):
            other.whole("x", 1)
        if command is gateway:
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            with pytest.raises(StoreRefused, match="secret does not belong"):
                S3Store(parse_store_url("s3://bucket"), options).whole("x", 1)
    figures.append(f"{command.__name__}: " + next(one.words for one in findings if one.tried == "large object"))


def uses(store: S3Store, rng: random.Random) -> None:
    bodies = {f"d/{number}": rng.randbytes(rng.choice([1, 300, 70_000, 6_000_000])) for number in range(20)}
    for name, body in bodies.items():
        store.put(name, body)
    for name, body in bodies.items():
        digest = hashlib.sha256()
        for chunk in store.read(name, 0, len(body)):
            digest.update(chunk)
        assert digest.digest() == hashlib.sha256(body).digest()
        assert store.suffix(name, 128) == (body[-128:], len(body))
        with pytest.raises(ObjectDamaged):
            list(store.read(name, len(body) - 1, 2))
        with pytest.raises(ObjectDamaged):
            list(store.read(name, len(body), 1))
        store.delete(name)
        store.delete(name)
        with pytest.raises(ObjectMissing):
            store.whole(name, 1)
