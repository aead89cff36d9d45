"""Decoders of what people write: configuration files, environment, sizes, mount options, id maps, endpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base import id_map, sizes
from awsomefsd.base.errors import ConfigError, Error
from awsomefsd.config import mount_options, settings
from tests.fuzz.target import Target

TOML = b'state_dir = "/var/lib/x"\n[log]\nlevel = "debug"\n[memory]\nworker = "200M"\n[metrics]\nlisten = "127.0.0.1:9"\n'
YAML = b"state_dir: /var/lib/x\nlog: {level: debug}\nmemory:\n  worker: 200M\n"
WORDS = {
    4: (b"1.5GiB", b"64M", b"12"), 5: (b"ro,nosuid,root_squash,map_uid=0:100:5+7:7:1",), 6: (b"0:1000:10+20:0:1",),
    7: (b"node=host:1,other=[::1]:2",), 8: (b"127.0.0.1:9000",),
}  # fmt: skip


READERS: dict[int, Callable[[str], object]] = {
    4: sizes.parse_bytes,
    5: lambda text: mount_options.parse(mount_options.split(text)),
    6: lambda text: id_map.parse("map_uid", text),
    7: settings.parse_voters,
    8: settings.parse_endpoint,
}


def seeds() -> list[bytes]:
    plain = [bytes([kind]) + word for kind, words in WORDS.items() for word in words]
    return [b"\0" + TOML, b"\1" + YAML, b"\2AWSOMEFSD_LOG__LEVEL=debug", b"\3AWSOMEFSD_MEMORY__WORKER=200M", *plain]


def make() -> Callable[[bytes], None]:
    """0: a TOML file, 1: a YAML file, 2 and 3: a variable, and so on; only ConfigError and its kin may come out, with something to read."""
    directory = Path(tempfile.mkdtemp(prefix="afs-fuzz-"))
    files = [directory / "c.toml", directory / "c.yaml"]

    def read(kind: int, body: bytes) -> object:
        text = body.decode("utf-8", "surrogateescape")
        if kind < 2:
            files[kind].write_bytes(body)
            return settings.load(files[kind], {})
        if kind < 4:
            name, _, value = text.replace("\0", "").partition("=")
            return settings.load(None, {f"AWSOMEFSD_{name.removeprefix('AWSOMEFSD_')}": value})
        return READERS[kind](text)

    def run(data: bytes) -> None:
        kind = data[0] % 9
        try:
            read(kind, data[1:])
        except (Error, ValueError) as err:
            if (kind < 4 and not isinstance(err, ConfigError)) or not str(err):
                raise AssertionError("not an error for people") from err

    return run


TARGETS = [Target("settings", seeds, make)]
