"""Mount options: sorted by who acts on them; nothing unknown gets through."""

from __future__ import annotations

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import KIB, READ_AHEAD_BYTES_MAX
from awsomefsd.config.mount_options import FLAGS, NO_FLAGS, parse, remounted, split
from awsomefsd.keeper import mount_syscalls


def test_defaults() -> None:
    options = parse([])
    assert options.fuse_options == "default_permissions,allow_other" and not options.read_only and options.flags == ()
    assert options.readahead_kib == READ_AHEAD_BYTES_MAX // KIB


def test_multinode_is_shared_where_mount_8_keeps_shared_for_itself() -> None:
    assert split("multinode,_netdev,noatime") == ["shared", "_netdev", "noatime"] and parse(split("multinode")).shared
    assert remounted(["shared"], split("remount,multinode,ro")) == ["shared", "ro"]


def test_an_fstab_line() -> None:
    options = parse(split("defaults,_netdev,nofail,ro,noatime,nosuid,nodev,noexec,x-systemd.requires=a.service,comment=c,user=root"))
    assert options.flags == ("ro", "noatime", "nosuid", "nodev", "noexec") and options.read_only


def test_the_later_of_opposites_wins() -> None:
    assert not parse(["ro", "rw"]).read_only and parse(["rw", "ro"]).read_only
    assert parse(["noallow_other", "uid=7", "gid=8"]).fuse_options == "default_permissions,user_id=7,group_id=8"
    assert parse(["noallow_other", "allow_other"]).allow_other


def test_shared_has_to_be_asked_for() -> None:
    assert parse(["shared"]).shared and not parse([]).shared
    assert parse(["shared"]).flags == ()


def test_split_keeps_quoted_commas() -> None:
    assert split('ro,context="system_u:object_r:tmp_t:s0:c1,c2",,nodev ') == ["ro", 'context="system_u:object_r:tmp_t:s0:c1,c2"', "nodev"]


@pytest.mark.parametrize(
    "option", ["nosiud", "RO", "readahead", "readahead=1T", "uid=x", "uid=-1", "uid=4294967295", "ro=1", "", "user_id"]
)
def test_refused_by_name(option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([option])
    assert option in str(caught.value) and "literal" not in str(caught.value)


def test_typo_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean nosuid"):
        parse(["nosiud"])


@pytest.mark.parametrize("word", ["names", "names=", "names=delegated", "names=eventually"])
def test_names_are_no_option_of_a_mount(word: str) -> None:
    with pytest.raises(ConfigError, match=r"durable or delegated for a volume.*volume set.*sync or dirsync"):
        parse([word])


def test_the_keeper_knows_every_flag() -> None:
    # The values of mount(2), <linux/mount.h>.
    small = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "nosymfollow": 256}
    times = {"noatime": 1 << 10, "nodiratime": 1 << 11, "relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25}
    kernel = small | times
    assert {name: mount_syscalls.flags_of([name]) for name in FLAGS} == {name: kernel.get(name, 0) for name in FLAGS}


def test_a_shared_mount_caches_unless_it_is_told_not_to() -> None:
    assert parse(["shared"]).caches and not parse(["shared", "cache=none"]).caches
    assert parse(["cache=none", "shared", "cache=leases"]).caches
    with pytest.raises(ConfigError, match=r"cache=some: choose one of leases, none"):
        parse(["shared", "cache=some"])
    with pytest.raises(ConfigError, match="option shared"):
        parse(["cache=none"])


def test_a_shared_mount_decides_names_only_where_it_is_told_to() -> None:
    assert parse(["shared", "names=leases"]).leased_names and not parse(["shared"]).leased_names
    assert not parse(["shared", "names=leases", "names=leader"]).leased_names
    with pytest.raises(ConfigError, match="names=leases needs mount option shared"):
        parse(["names=leases"])
    for without in ("cache=none", "consistency=close-to-open"):
        with pytest.raises(ConfigError, match="names=leases excludes cache=none and consistency="):
            parse(["shared", "names=leases", without])


# --- remount --------------------------------------------------------------------------------------------------------------------
def test_a_remount_replaces_words_of_one_subject() -> None:
    given = ["shared", "noatime", "ro", "x-a", "readahead=1M"]
    table = ["rw", "noatime", "user_id=0", "group_id=0", "default_permissions", "allow_other", "seclabel"]  # as mount(8) hands it over
    after = remounted(given, [*table, "remount", "relatime", "readahead=64K"])
    options = parse(after)
    assert not options.read_only and options.shared and options.readahead_kib == 64 and options.atime_policy == ("relatime", True)
    assert remounted(after, [*table[1:], "remount", "ro"])[-1] == "ro" and len(set(after)) == len(after)
    assert remounted(["nosuid", "sync", "x-a", "ro"], ["suid", "async", "remount", "rw"]) == ["x-a"]
    assert remounted(["nosuid", "noatime", "shared"], [*NO_FLAGS, "ro", "remount"]) == ["shared", "ro"]
    assert remounted(["dirsync", "rw"], ["dirsync", "ro", "remount"]) == ["dirsync", "ro"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["root_squash"], "root_squash"), (["shared"], "shared"), (["noallow_other"], "allow_other"), (["uid=5"], "user_id"),
        (["nodefault_permissions"], "default_permissions"), (["map_uid=0:1:2"], "map_uid"), (["on-lease-loss=error"], "on-lease-loss"),
        (["nosiud"], "did you mean nosuid"), (["dirsync"], "dirsync"), (["shared", "names=leases"], "names"),
    ],
)  # fmt: skip
def test_a_remount_names_what_it_cannot_change(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        remounted(["noatime"], ["remount", *words])
