"""The rules for requests to the driver: names, sizes, access modes, mount options, parameters of a StorageClass.  Pure.

Everything unknown is refused with a list of the known words: a parameter that is silently ignored would be a promise that no volume
keeps.  A parameter of something that is not built yet is known by name, and takes only the value that is true today.

Every check raises CsiError: INVALID_ARGUMENT, or OUT_OF_RANGE for sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from awsomefsd.base import consistency
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import BLOCK_BYTES, CSI_NAME_BYTES_MAX, CSI_PATH_BYTES_MAX, FILE_BYTES_MAX, GIB
from awsomefsd.base.sizes import parse_bytes
from awsomefsd.base.types import NAMES_WORDS
from awsomefsd.config import mount_options
from awsomefsd.csi.errors import CsiError, invalid
from awsomefsd.csi.pb import csi_pb2 as pb

Mode = pb.VolumeCapability.AccessMode
EXCLUSIVE = {Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER}
READERS = {Mode.SINGLE_NODE_READER_ONLY, Mode.MULTI_NODE_READER_ONLY}
ONE_TARGET = {Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER}
MODES = EXCLUSIVE | {Mode.MULTI_NODE_READER_ONLY, Mode.MULTI_NODE_MULTI_WRITER}
BLOCK_BYTES_DEFAULT = GIB
FS_TYPES = ("", "awsomefs")
# Options of one mount of a volume that is mounted at several places; all others are the same for all of them.
BIND_FLAGS = ("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nosymfollow", "symfollow")
_IGNORED = ("defaults", "_netdev")
_VOLUME_FLAGS = mount_options.FLAGS - set(BIND_FLAGS)
_VOLUME_WORDS = ("root_squash", "no_root_squash", "default_permissions", "nodefault_permissions")
_VOLUME_VALUES = ("readahead", "map_uid", "map_gid")

KUBERNETES = "csi.storage.k8s.io/"
# parameter -> the values it takes; None: checked where it is read
FIXED: dict[str, tuple[str, ...] | None] = {
    "volume": None,
    "subdirectory": None,
    "onDelete": ("delete", "retain"),
    "devices": ("all",),
    "mode": None,
    "uid": None,
    "gid": None,
}
MUTABLE: dict[str, tuple[str, ...] | None] = {
    "quota": ("hard", "none"),
    "inodes": None,
    "names": NAMES_WORDS,
    "consistency": None,
    "cache": ("auto",),
}
INLINE = ("gid", "inodes", "mode", "size", "uid")  # attributes of an inline volume
INLINE_INODES_MIN, INLINE_BYTES_PER_INODE = 1024, 16384
ID_MAX = (1 << 32) - 2  # of users and groups
_NOT_BUILT = {
    "devices": "a volume uses all devices of the cluster; sets of devices are not supported",
    "cache": "other ways of caching are not supported",
}


@dataclass(frozen=True, slots=True)
class WantedVolume:
    """The parameters of a StorageClass, read."""

    settings: dict[str, str] = field(default_factory=dict)
    volume: str = ""  # shared: a directory of it stands for each volume
    subdirectory: str = ""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    inodes: int = 0
    hard: bool = True
    names: int | None = None  # an index of NAMES_WORDS; None: as of new volumes


def check_name(name: str, what: str = "name") -> str:
    """Returns a name or id of a request unchanged, if it is neither missing nor too long."""
    if not name:
        raise invalid(f"{what} is missing")
    if len(name.encode()) > CSI_NAME_BYTES_MAX:
        raise invalid(f"{what} has {len(name.encode())} bytes, at most {CSI_NAME_BYTES_MAX} are allowed")
    return name


def check_capability(capability: pb.VolumeCapability, *, of_block: bool | None = None) -> bool:
    """Checks a capability; returns True if it asks for a block device.  `of_block`: the volume is one (None: not known)."""
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise invalid("volume_capability has neither mount nor block")
    if capability.access_mode.mode not in MODES:
        names = ", ".join(sorted(Mode.Mode.Name(mode) for mode in MODES))
        raise invalid(f"access mode {capability.access_mode.mode} is not supported; supported are {names}")
    block = kind == "block"
    if not block:
        if capability.mount.fs_type not in FS_TYPES:
            raise invalid(f"fs_type {capability.mount.fs_type!r} is not supported; leave it out")
        split_flags(capability.mount.mount_flags)
    if of_block is not None and block != of_block:
        raise invalid("the volume is a block device" if of_block else "the volume is a file system")
    return block


def check_capabilities(capabilities: Iterable[pb.VolumeCapability], *, of_block: bool | None = None) -> bool:
    """Checks all capabilities as `check_capability`; they have to be of one kind."""
    kinds = {check_capability(capability, of_block=of_block) for capability in capabilities}
    if len(kinds) != 1:
        raise invalid("volume_capabilities are missing" if not kinds else "a volume is a block device or a file system, not both")
    return kinds.pop()


def split_flags(flags: Iterable[str]) -> tuple[list[str], list[str]]:
    """Checks mount flags, and returns (options of this mount, options of the volume's mount)."""
    bind, whole = [], []
    for flag in flags:
        for option in mount_options.split(flag):
            name = option.partition("=")[0]
            if option in BIND_FLAGS:
                bind.append(option)
            elif option in _VOLUME_FLAGS or option in _VOLUME_WORDS or ("=" in option and name in _VOLUME_VALUES):
                whole.append(option)
            elif option not in _IGNORED:
                known = ", ".join(sorted([*BIND_FLAGS, *_VOLUME_FLAGS, *_VOLUME_WORDS, *(f"{name}=" for name in _VOLUME_VALUES)]))
                raise invalid(f"mount option {option!r} is not allowed; known are {known}")
    try:
        mount_options.parse(whole)
    except ConfigError as err:
        raise invalid(str(err)) from err
    return bind, whole


def capacity_of(asked: pb.CapacityRange, *, block: bool, default: int | None = None) -> int:
    """Returns the size (bytes) to make; 0: none was asked for, and a file system needs none."""
    required, limit = asked.required_bytes, asked.limit_bytes
    if required < 0 or limit < 0:
        raise invalid("capacity_range has a negative size")
    if limit and required > limit:
        raise CsiError("OUT_OF_RANGE", f"required_bytes {required} is above limit_bytes {limit}")
    if required > FILE_BYTES_MAX:
        raise CsiError("OUT_OF_RANGE", f"required_bytes {required} is above the largest possible size, {FILE_BYTES_MAX}")
    size = required or (min(limit, FILE_BYTES_MAX) if limit else (default or (BLOCK_BYTES_DEFAULT if block else 0)))
    if block and not required:
        size = min(size, BLOCK_BYTES_DEFAULT)
    rounded = -(-size // BLOCK_BYTES) * BLOCK_BYTES
    if limit and rounded > limit:
        rounded = size
        if block:
            rounded = limit // BLOCK_BYTES * BLOCK_BYTES
            if not rounded or rounded < required:
                raise CsiError("OUT_OF_RANGE", f"no multiple of {BLOCK_BYTES} between required_bytes {required} and limit_bytes {limit}")
    return rounded


def fits(capacity: int, asked: pb.CapacityRange) -> bool:
    """Returns True if a capacity (bytes) is within the range that was asked for."""
    return capacity >= asked.required_bytes and not (asked.limit_bytes and capacity > asked.limit_bytes)


def read_parameters(fixed: Mapping[str, str], mutable: Mapping[str, str], *, block: bool, name: str = "") -> WantedVolume:
    """Returns the parameters of CreateVolume.  A mutable one may be in both maps; the mutable map wins, as the specification says.

    Without a name the parameters are those of no volume, or of one that is made: then `subdirectory` is "".
    """
    settings = {key: value for key, value in fixed.items() if not key.startswith(KUBERNETES)}
    for key in settings.keys() - FIXED.keys() - MUTABLE.keys():
        raise invalid(f"parameter {key!r} is unknown; known are {', '.join(sorted([*FIXED, *MUTABLE]))}")
    check_mutable(mutable)
    settings |= mutable
    for key, value in settings.items():
        _check_value(key, value)
    shared = settings.get("volume", "")
    if settings.get("subdirectory") and not shared:
        raise invalid("parameter subdirectory needs parameter volume, the volume of the directory")
    if shared and block:
        raise invalid("a block volume always has a volume of its own; leave parameter volume out")
    if shared and settings.get("quota", "none") != "none":
        raise invalid("a directory of a shared volume has no quota of its own; write quota: none, or leave parameter volume out")
    if shared and "inodes" in settings:
        raise invalid("a directory of a shared volume has no quota of its own; leave parameter inodes out")
    if shared and "names" in settings:
        raise invalid("a directory has the names of its volume (`awsomefsd volume set --names`); leave parameter names out")
    path = expand(settings.get("subdirectory") or "${name}", {**fixed, "name": name}) if shared and name else ""
    return WantedVolume(
        settings=settings,
        volume=shared,
        subdirectory=path,
        mode=_number(settings, "mode", 8, 0o7777, 0o700 if block else 0o755),
        uid=_number(settings, "uid", 10, ID_MAX, 0),
        gid=_number(settings, "gid", 10, ID_MAX, 0),
        inodes=_count(settings.get("inodes", "0")),
        hard=settings.get("quota", "none" if shared else "hard") == "hard" and not block,
        names=NAMES_WORDS.index(settings["names"]) if "names" in settings else None,
    )


def read_inline(attributes: Mapping[str, str], largest: int) -> tuple[WantedVolume, int]:
    """Returns the attributes of an inline volume, and its size (bytes), which is at most `largest`.

    Whoever may make pods writes them, so there is always a quota of bytes and of files.
    """
    settings = {key: value for key, value in attributes.items() if not key.startswith(KUBERNETES)}
    for key in settings.keys() - set(INLINE):
        raise invalid(f"volumeAttributes: {key!r} is unknown; known are {', '.join(INLINE)}")
    text = settings.get("size", "")
    try:
        size = parse_bytes(text + "B" if text.endswith("i") else text) if text else min(GIB, largest)
    except ValueError as err:
        raise invalid(f"volumeAttributes: size: {err}") from None
    if not BLOCK_BYTES <= size <= largest:
        raise CsiError("OUT_OF_RANGE", f"volumeAttributes: size: {text} is not between {BLOCK_BYTES} and {largest} bytes (csi.inline_max)")
    most = max(INLINE_INODES_MIN, largest // BLOCK_BYTES)
    inodes = _count(settings["inodes"]) if "inodes" in settings else max(INLINE_INODES_MIN, size // INLINE_BYTES_PER_INODE)
    if not 0 < inodes <= most:
        raise invalid(f"volumeAttributes: inodes: {settings['inodes']} is not between 1 and {most}")
    mode, uid, gid = (_number(settings, *one) for one in (("mode", 8, 0o7777, 0o777), ("uid", 10, ID_MAX, 0), ("gid", 10, ID_MAX, 0)))
    return WantedVolume(settings=settings, mode=mode, uid=uid, gid=gid, inodes=inodes), size


def check_mutable(mutable: Mapping[str, str]) -> None:
    """Checks the parameters that can be changed later: their names and values."""
    for key, value in mutable.items():
        if key not in MUTABLE:
            raise invalid(f"mutable parameter {key!r} is unknown; known are {', '.join(sorted(MUTABLE))}")
        _check_value(key, value)


def _check_value(key: str, value: str) -> None:
    allowed = FIXED.get(key) or MUTABLE.get(key)
    if allowed and value not in allowed:
        why = f" ({_NOT_BUILT[key]})" if key in _NOT_BUILT else ""
        raise invalid(f"parameter {key}: {value!r} is not supported{why}; write {' or '.join(allowed)}")
    if key == "inodes":
        _count(value)
    elif key == "consistency":
        try:
            consistency.parse(value)
        except ValueError as err:
            raise invalid(f"parameter consistency: {err}") from None


def _count(text: str) -> int:
    try:
        number = parse_bytes(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 62:
        raise invalid(f"parameter inodes: {text!r} is not a number")
    return number


def _number(settings: Mapping[str, str], key: str, base: int, largest: int, default: int) -> int:
    text = settings.get(key, "")
    if not text:
        return default
    if text.isascii() and text.isdigit():
        try:
            if (number := int(text, base)) <= largest:
                return number
        except ValueError:
            pass
    raise invalid(
        f"parameter {key}: {text!r} is not a number{' in octal' if base == 8 else ''} up to {largest:{'o' if base == 8 else 'd'}}"
    )


def expand(pattern: str, known: Mapping[str, str]) -> str:
    """Returns the directory of a pattern with ${name} of the volume, and ${pvc.name}, ${pvc.namespace}, ${pv.name} where they are known."""
    path = pattern
    words = {"name": known["name"]}
    for word in ("pvc.name", "pvc.namespace", "pv.name"):
        if (value := known.get(KUBERNETES + word.replace(".", "/"))) is not None:
            words[word] = value
    for word, value in words.items():
        if f"${{{word}}}" in path and ("/" in value or value in ("", ".", "..")):
            raise invalid(f"{value!r} cannot be part of a directory's name")
        path = path.replace(f"${{{word}}}", value)
    if "${" in path:
        raise invalid(f"parameter subdirectory {pattern!r}: known are ${{name}} and, with --extra-create-metadata, ${{pvc.name}} and so on")
    return check_path(path)


def check_path(path: str) -> str:
    """Returns a path inside a volume unchanged, if it is made of plain names only."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path or len(path.encode()) > CSI_PATH_BYTES_MAX:
        raise invalid(f"{path!r} is not a path inside a volume; write plain names with / between them, up to {CSI_PATH_BYTES_MAX} bytes")
    return path
