"""Mount options as people write them, sorted by the layer that acts on them: the kernel's mount flags, the FUSE layer, this system, none.

Pure.  An unknown option is an error that names it: a mistyped `nosiud` that is silently ignored would be a hole.  `default_permissions` is
on (the kernel checks modes) unless `nodefault_permissions` leaves that to the worker, `allow_other` is on unless `noallow_other` asks for a
mount that only its owner may enter.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from awsomefsd.base import consistency, id_map
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.id_map import EVERYBODY, IdMap
from awsomefsd.base.limits import KIB, READ_AHEAD_BYTES_MAX
from awsomefsd.base.sizes import parse_bytes

# Passed to mount(2) as flags; of opposites the later one wins.
FLAGS = frozenset((
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync", "noatime", "atime", "nodiratime",
    "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "nosymfollow", "symfollow",
))  # fmt: skip
# For mount(8), fstab and systemd; they mean nothing to a filesystem.
BOOKKEEPING = frozenset((
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "nousers", "owner", "noowner", "group",
    "nogroup", "silent", "loud", "mand", "nomand", "iversion", "noiversion",
))  # fmt: skip
BOOKKEEPING_VALUES = ("comment", "user", "helper", "uhelper")
VALUES = ("readahead", "uid", "gid", "user_id", "group_id")
MAPS = ("map_uid", "map_gid")
CHOICES = {"on-lease-loss": ("block", "error"), "cache": ("leases", "none"), "names": ("leader", "leases")}  # the first one is the default
# Of opposites the later one wins.
OURS = (
    "allow_other", "noallow_other", "default_permissions", "nodefault_permissions", "root_squash", "no_root_squash", "shared",
)  # fmt: skip


# mount(8) takes `shared` for the propagation of the mount point, and its helpers never see it.
_OTHER_NAMES = {"multinode": "shared"}
# Words that mount(8) and `mount` take beside the options of a mount: change what is mounted there.
REMOUNT = "remount"
NO_FLAGS = ("rw", "suid", "dev", "exec", "async", "symfollow", "relatime", "diratime", "nolazytime")  # what holds where none is given
_SHOWN = ("seclabel",)  # the mount table may show it, so mount(8) hands it over at a remount
_OPPOSITES = (
    ("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"), ("sync", "async"), ("nosymfollow", "symfollow"),
    ("relatime", "noatime", "strictatime", "atime", "norelatime", "nostrictatime"), ("nodiratime", "diratime"),
    ("lazytime", "nolazytime"), ("allow_other", "noallow_other"), ("default_permissions", "nodefault_permissions"),
    ("root_squash", "no_root_squash"),
)  # fmt: skip
_SHARED_FIELDS = (
    "allow_other", "user_id", "group_id", "default_permissions", "root_squash", "shared", "on_lease_loss", "caches", "leased_names",
    "consistency", "map_uid", "map_gid",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The options of one mount, read.  `flags` are in order; `user_id` and `group_id` own the mount (they matter with noallow_other)."""

    flags: tuple[str, ...] = ()
    read_only: bool = False
    allow_other: bool = True
    readahead_kib: int = READ_AHEAD_BYTES_MAX // KIB
    user_id: int | None = None
    group_id: int | None = None
    default_permissions: bool = True
    root_squash: bool = False
    shared: bool = False  # with mounts of the volume on other nodes
    on_lease_loss: str = "block"  # what operations do when no quorum renews the lease
    caches: bool = True  # of a shared mount: under leases
    leased_names: bool = False  # a shared mount decides names under leases, where the volume has delegated ones
    consistency: int = consistency.STRICT
    map_uid: IdMap = EVERYBODY
    map_gid: IdMap = EVERYBODY
    given: tuple[str, ...] = field(default=(), compare=False)

    @property
    def atime_policy(self) -> tuple[str, bool]:
        """Returns which of relatime, strictatime, noatime holds, and whether directories have atimes too; as mount(2) reads the flags."""
        files = "relatime"
        if _last(self.flags, "noatime", "atime") == "noatime":
            files = "noatime"
        if _last(self.flags, "strictatime", "nostrictatime") == "strictatime":
            files = "strictatime"
        return files, _last(self.flags, "nodiratime", "diratime") != "nodiratime"

    @property
    def fuse_options(self) -> str:
        """The options of the FUSE layer, joined by commas; the keeper adds them to its own (fd, rootmode, user_id, group_id)."""
        words = ["default_permissions"] if self.default_permissions else []
        if self.allow_other:
            words.append("allow_other")
        if self.user_id is not None:
            words.append(f"user_id={self.user_id}")
        if self.group_id is not None:
            words.append(f"group_id={self.group_id}")
        return ",".join(words)


def split(text: str) -> list[str]:
    """Returns the options of one -o argument, `multinode` as `shared`; commas inside double quotes do not split (as in fstab)."""
    options, current, quoted = [], "", False
    for char in text:
        if char == '"':
            quoted = not quoted
        if char == "," and not quoted:
            options.append(current)
            current = ""
        else:
            current += char
    words = [option.strip() for option in (*options, current)]
    return [_OTHER_NAMES.get(word, word) for word in words if word]


def checked(text: str) -> str:
    """Returns the setting mount.options unchanged.  Raises ValueError for an option that no mount takes.

    Options that need `shared` are allowed here, because each mount may add that itself.
    """
    try:
        parse(["shared", *split(text)])
    except ConfigError as err:
        raise ValueError(str(err)) from None
    return text


def parse(options: list[str], readahead_kib: int = READ_AHEAD_BYTES_MAX // KIB, by_root: bool = True) -> MountOptions:
    """Returns the options of a mount.  Raises ConfigError, which names a bad one.  Not `by_root`: allow_other has to be asked for."""
    flags: list[str] = []
    values: dict[str, int] = {}
    ours: list[str] = []
    maps: dict[str, IdMap] = {}
    choices = {name: words[0] for name, words in CHOICES.items()}
    fresh = consistency.STRICT
    for option in options:
        name, equals, value = option.partition("=")
        if option in FLAGS:
            flags.append(option)
        elif option in OURS:
            ours.append(option)
        elif equals and name in MAPS:
            maps[name] = id_map.parse(name, value)
        elif name == "names" and value not in CHOICES[name]:
            raise ConfigError(f"mount option {option!r}: {_NAMES_SAY}")
        elif equals and name in CHOICES:
            choices[name] = _choice(name, value)
        elif equals and name == "consistency":
            fresh = _consistency(value)
        elif name == "bounded":
            raise ConfigError(f"mount option {option!r}: write consistency={option if equals else 'bounded=5'}")
        elif option in BOOKKEEPING or name.startswith(("x-", "X-")) or (equals and name in BOOKKEEPING_VALUES):
            continue
        elif equals and name in VALUES:
            values[name] = _number(name, value)
        else:
            raise ConfigError(f"unknown mount option {option!r}{_nearest(name)}; correct or remove it")
    _check_caches("shared" in ours, choices, fresh)
    return MountOptions(
        flags=tuple(flags),
        read_only=_last(flags, "ro", "rw") == "ro",
        allow_other=(_last(ours, "allow_other", "noallow_other") or by_root) in ("allow_other", True),
        default_permissions=_last(ours, "default_permissions", "nodefault_permissions") != "nodefault_permissions",
        root_squash=_last(ours, "root_squash", "no_root_squash") == "root_squash",
        shared="shared" in ours,
        on_lease_loss=choices["on-lease-loss"],
        caches=choices["cache"] != "none",
        leased_names=choices["names"] == "leases",
        consistency=fresh,
        **maps,
        readahead_kib=values.get("readahead", readahead_kib * KIB) // KIB,
        user_id=values.get("user_id", values.get("uid")),
        group_id=values.get("group_id", values.get("gid")),
        given=tuple(options),
    )


def differing(served: MountOptions, asked: MountOptions) -> list[str]:
    """Names what two mounts of one connection have to share, and do not: all but ro, nosuid, nodev, noexec and nosymfollow."""
    pairs = {name: (getattr(served, name), getattr(asked, name)) for name in _SHARED_FIELDS}
    pairs["atime"] = served.atime_policy, asked.atime_policy
    for word, opposite in (("sync", "async"), ("dirsync", "")):
        pairs[word] = _last(served.flags, word, opposite) == word, _last(asked.flags, word, opposite) == word
    return [_written(name) for name, (one, other) in pairs.items() if one != other]


def _written(field: str) -> str:
    """Returns the name of an option as it is written in -O."""
    return {"on_lease_loss": "on-lease-loss", "leased_names": "names"}.get(field, field)


def remounted(given: Sequence[str], words: Sequence[str], *, owner: tuple[int, int] = (0, 0)) -> list[str]:
    """Returns the options of a mount that was asked for with `given`, after a remount with `words`, each option once.

    A later word replaces an earlier one of the same subject.  `owner`: the ids of the mount's owner where none are given, as the mount
    table shows them always.  Raises ConfigError for an option that cannot change while the volume is mounted, and as `parse`.
    """
    kept: dict[str, str] = {}
    for word in (*given, *of_remount(words)):
        kept.pop(_subject(word), None)
        kept[_subject(word)] = word
    after = [word for word in kept.values() if word not in NO_FLAGS]
    changed = _fixed_differing(parse(list(given)), parse(after), owner)
    if changed:
        names = ", ".join(map(_written, changed))
        raise ConfigError(f"remount cannot change {names}; unmount the volume, and mount it with the new options")
    return after


def of_remount(words: Sequence[str]) -> list[str]:
    """Returns the options among the words that mount(8) hands over for a remount."""
    return [word for word in words if word not in (REMOUNT, *_SHOWN)]


def _fixed_differing(before: MountOptions, after: MountOptions, owner: tuple[int, int]) -> list[str]:
    def whole(options: MountOptions) -> MountOptions:
        user, group = (own if id is None else id for id, own in zip((options.user_id, options.group_id), owner, strict=True))
        fixed = tuple(word for word in options.flags if word == "dirsync")  # the kernel changes the others
        return replace(options, flags=fixed, user_id=user, group_id=group)

    return differing(whole(before), whole(after))


def _subject(word: str) -> str:
    """Names what a word is about: words of one subject replace each other."""
    name = word.partition("=")[0]
    same = next((group[0] for group in _OPPOSITES if word in group), name)
    return {"uid": "user_id", "gid": "group_id"}.get(same, same)


def _number(name: str, value: str) -> int:
    bound = READ_AHEAD_BYTES_MAX if name == "readahead" else (1 << 32) - 2
    try:
        number = parse_bytes(value) if name == "readahead" else int(value) if value.isascii() and value.isdigit() else -1
    except ValueError as err:
        raise ConfigError(f"mount option {name}={value}: {err}") from None
    if not 0 <= number <= bound:
        raise ConfigError(f"mount option {name}={value}: give a number from 0 to {bound}")
    return number


def _choice(name: str, value: str) -> str:
    if value not in CHOICES[name]:
        raise ConfigError(f"mount option {name}={value}: choose one of {', '.join(CHOICES[name])}")
    return value


def _consistency(value: str) -> int:
    try:
        return consistency.parse(value)
    except ValueError as err:
        raise ConfigError(f"mount option consistency={value}: {err}") from None


def _check_caches(shared: bool, choices: Mapping[str, str], fresh: int) -> None:
    if choices["cache"] == "none" and not shared:
        raise ConfigError("mount option cache=none needs mount option shared; add shared, or leave cache=none out")
    if fresh != consistency.STRICT:
        _check_loose(shared, choices["cache"])
    if choices["names"] == "leases":
        _check_names(shared, choices["cache"], fresh)


def _check_loose(shared: bool, cache: str) -> None:
    if not shared:
        raise ConfigError("mount option consistency= needs mount option shared; add shared, or leave consistency= out")
    if cache == "none":
        raise ConfigError("mount options cache=none and consistency= exclude each other; leave one of them out")


def _check_names(shared: bool, cache: str, fresh: int) -> None:
    if not shared:
        raise ConfigError("mount option names=leases needs mount option shared; add shared, or leave names=leases out")
    if cache == "none" or fresh != consistency.STRICT:
        raise ConfigError("mount option names=leases excludes cache=none and consistency=; leave one of them out")


def _last(flags: Sequence[str], *names: str) -> str | None:
    return next((flag for flag in reversed(flags) if flag in names), None)


_NAMES_SAY = (
    "changes of names are durable or delegated for a volume, not for one mount: `awsomefsd volume set VOLUME --names durable`, or "
    "delegated; of one mount, sync or dirsync makes each change durable, and names=leases lets a shared one decide names of what it holds"
)


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, [*FLAGS, *BOOKKEEPING, *VALUES, *MAPS, *CHOICES, "consistency", *OURS], n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
