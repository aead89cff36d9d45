"""The configuration of a segment server's process, which the command `awsomefsd segments` makes of the node's settings and identity.

It crosses an exec as a JSON object in a memfd: the process itself knows neither click nor pydantic, which would take a sixth of its memory.
Both sides are of one build.
"""

from __future__ import annotations

import os

import msgspec

from awsomefsd.base.errors import ConfigError


class SegmentsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are the keys of the JSON object."""

    cluster: str
    node: str
    role: str
    state_dir: str
    run_dir: str
    meta_sock: str  # path of the metadata socket of this node's daemon
    endpoints: str  # path of the file with the addresses of the nodes that carry the metadata
    places: dict[str, str] = {}  # node → address of its metadata port, of a static configuration
    tls: tuple[str, str, str]  # authorities, certificate, key: paths of PEM files
    listen: tuple[str, int] | None = None  # host and port for other nodes; None: off
    advertise: str = ""  # the host under which others reach this node; "": the address that it listens on, or routes with
    log_level: str = "info"
    log_format: str = "text"


def hand_over(config: SegmentsConfig) -> int:
    """Returns a descriptor that stays open over exec, from which `take_over` reads the configuration."""
    fd = os.memfd_create("segments", 0)
    os.write(fd, msgspec.json.encode(config))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def take_over(fd: int) -> SegmentsConfig:
    """Returns the configuration that was handed over in `fd`, which is closed.  Raises ConfigError for anything else."""
    try:
        with open(fd, "rb") as file:
            return msgspec.json.decode(file.read(), type=SegmentsConfig)
    except (OSError, msgspec.DecodeError) as err:
        raise ConfigError(f"descriptor {fd} has no configuration of a segment server ({err}); start it by `awsomefsd segments`") from None
