"""StoreCatalog of objects as this node's daemon adds, checks, changes and forgets them.

`add` goes: everything that was typed is judged; the store is checked; the cluster knows it (state adding, with its secret); its marker and
its era are put; the cluster knows that it is ready.  Whatever ends in between, the same command goes on from there, on any node.

StoreCatalog are not complete in this build.  No cluster acts at their level but those of tests, and everybody else is told so.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Generator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from awsomefsd.base import levels
from awsomefsd.base.errors import AlreadyExists, ConfigError, Corrupt, FsError, NotFound, Refused
from awsomefsd.base.limits import STORE_CA_BYTES_MAX, STORE_KEEP_MS_MAX, STORE_KEEP_MS_MIN, STORE_RPO_MS_MAX, STORE_RPO_MS_MIN
from awsomefsd.base.rule_levels import STORES
from awsomefsd.base.types import KEPT, OF_ROLE, STORE_ADDING, STORE_RECOVERED, StoreInfo, StoreOptions
from awsomefsd.meta.api.commands import AddStore, BeginEra, DetachStore, SetStore, StoreReady
from awsomefsd.meta.api.messages.stores import GetStoreSecret, ListStores
from awsomefsd.node import store_child
from awsomefsd.node.catalog import Catalog, check_name
from awsomefsd.node.store_child import Leave, Work
from awsomefsd.tier.credentials import Credentials, checked
from awsomefsd.tier.s3_store import check_certificates
from awsomefsd.tier.store_check import BAD
from awsomefsd.tier.store_secret import StoreSecret, new_key, unveil, veil
from awsomefsd.tier.store_url import DIRECTORY, parse_store_url
from awsomefsd.tier.store_work import CHECK, CLAIM, OWNER, Job, open_store

_DAY = 86_400_000
RPO_MS, KEEP_MS = 300_000, _DAY
Findings = Generator[dict[str, Any], None, StoreInfo]  # of a check, and at the end the store


class StoreAsked(Struct, frozen=True):
    """What was typed about a store; None: nothing.  `keys` and `role` exclude each other.  "" of a text takes it away."""

    endpoint: str | None = None
    region: str | None = None
    ca: str | None = None
    proxy: str | None = None
    keys: Credentials | None = None
    role: bool = False
    rpo_ms: int | None = None
    keep_ms: int | None = None
    sealed: bool = False

    def reaches(self) -> bool:
        """Returns True if it says how the store is reached."""
        said = (self.endpoint, self.region, self.ca, self.proxy, self.keys)
        return self.role or any(one is not None for one in said)


class StoreCatalog:
    """Every method blocks for the metadata service, and most for a store.  Raises their Errors; messages name what to do, and no secret.

    `cluster`: its UUID.  `run`: as store_child.run.  Findings are yielded when there are any, and whoever does not go on ends the work.
    """

    def __init__(self, catalog: Catalog, cluster: str, run: Callable[[Job, Leave], Work] = store_child.run) -> None:
        self._catalog, self._cluster, self._run = catalog, uuid.UUID(cluster), run

    def require_level(self) -> None:
        """Raises Refused where this build, or the cluster, is at no level that knows stores."""
        if levels.highest() < STORES:
            raise Refused("stores of objects are not complete in this build; use devices")
        if (level := self._catalog.level()) < STORES:
            raise Refused(levels.too_low(STORES, level))

    def all(self) -> list[StoreInfo]:
        self.require_level()
        return list(self._catalog.ask(ListStores()).stores)

    def find(self, name: str) -> StoreInfo:
        """Returns the store of a name.  Raises NotFound, which lists those that there are."""
        known = self.all()
        for info in known:
            if info.name == name:
                return info
        names = ", ".join(info.name for info in known) or "none"
        raise NotFound(f"there is no store {name!r} (stores: {names}); add it with `awsomefsd store add {name} URL`")

    def add(self, name: str, url: str, asked: StoreAsked, leave: Leave) -> Findings:
        """Adds a store and returns it; goes on with one that was begun under the same name and URL.

        Raises Refused where the check found something bad.
        """
        self.require_level()
        check_name(name, "store")
        url = str(parse_store_url(url))
        options, secret = judged(url, asked, StoreOptions(RPO_MS, KEEP_MS, sealed=asked.sealed), StoreSecret())
        known = next((info for info in self.all() if info.name == name), None)
        if known is not None and (known.url != url or known.state != STORE_ADDING):
            raise AlreadyExists(
                f"store {name!r} exists already, at {known.url}; choose another name, or change it by `awsomefsd store set`"
            )
        yield from self._checked(url, options, secret, leave)
        try:
            if known is None:
                self._catalog.propose(AddStore(name, url, str(uuid.uuid4()), options, veil(secret)))
            else:
                kept = self._secret(known)
                secret = replace(secret, segments_key=kept.segments_key or secret.segments_key)
                self._catalog.propose(SetStore(known.store, known.changed, options, veil(secret)))
        except FsError as err:
            if err.errno == errno.EEXIST:
                raise AlreadyExists(f"store {name} cannot be added: {err}; `awsomefsd store ls` shows what there is") from err
            raise FsError(err.errno, f"store {name} cannot be added: {err}") from err
        return (yield from self._claimed(self.find(name), secret, leave))

    def check(self, name: str, leave: Leave) -> Work:
        """Tries a store that the cluster has.  Raises Unavailable and Refused if it could not be tried."""
        info = self.find(name)
        owned = info.state != STORE_ADDING
        return (yield from self._run(Job(CHECK, info.url, info.options, self._cluster, self._secret(info).keys, owned=owned), leave))

    def check_new(self, url: str, asked: StoreAsked, leave: Leave) -> Work:
        """Tries a store that the cluster does not have, as `add` does before it adds it."""
        self.require_level()
        url = str(parse_store_url(url))
        options, secret = judged(url, asked, StoreOptions(RPO_MS, KEEP_MS), StoreSecret())
        return (yield from self._run(Job(CHECK, url, options, self._cluster, secret.keys), leave))

    def change(self, name: str, asked: StoreAsked, leave: Leave) -> Findings:
        """Changes a store and returns it.  Where it would be reached in another way, that way has to lead to the same one."""
        info = self.find(name)
        kept = self._secret(info, lost_is_ok=asked.keys is not None or asked.role)
        options, secret = judged(info.url, asked, info.options, kept)
        if asked.reaches() and info.state != STORE_ADDING:
            yield from self._run(Job(OWNER, info.url, options, self._cluster, secret.keys), leave)
        try:
            self._catalog.propose(SetStore(info.store, info.changed, options, None if secret == kept else veil(secret)))
        except FsError as err:
            raise FsError(err.errno, f"store {name} cannot be changed: {err}") from err
        return self.find(name)

    def begin_era(self, info: StoreInfo, leave: Leave) -> Findings:
        """Begins the era of a store that a recovery has left without one, or goes on with one that was begun; returns the store."""
        assert info.state == STORE_RECOVERED
        secret = self._secret(info)
        if not info.era:
            self._catalog.propose(BeginEra(info.store, info.changed, str(uuid.uuid4())))
            info = self.find(info.name)
        return (yield from self._claimed(info, secret, leave))

    def detach(self, name: str) -> StoreInfo:
        """Forgets a store and returns what it was."""
        info = self.find(name)
        self._catalog.propose(DetachStore(info.store))
        return info

    def _checked(self, url: str, options: StoreOptions, secret: StoreSecret, leave: Leave) -> Generator[dict[str, Any], None, None]:
        bad: list[str] = []
        for finding in self._run(Job(CHECK, url, options, self._cluster, secret.keys), leave):
            if finding["level"] == BAD:
                bad.append(finding["words"])
            yield finding
        if bad:
            raise Refused(f"{url} cannot be a store: {'; '.join(bad)}; nothing was added")

    def _claimed(self, info: StoreInfo, secret: StoreSecret, leave: Leave) -> Findings:
        before = uuid.UUID(info.before) if info.before else None
        job = Job(
            CLAIM, info.url, info.options, self._cluster, secret.keys, info.state == STORE_RECOVERED, uuid.UUID(info.era),
            info.era_ns or info.created_ns, before, info.recovered,
        )  # fmt: skip
        done = yield from self._run(job, leave)
        try:
            self._catalog.propose(StoreReady(info.store, info.changed, done["era_number"]))
        except FsError as err:
            raise FsError(err.errno, f"store {info.name} is not ready: {err}") from err
        return self.find(info.name)

    def _secret(self, info: StoreInfo, *, lost_is_ok: bool = False) -> StoreSecret:
        """Returns what the cluster keeps of a store.  Raises Refused if it should have keys and has none."""
        try:
            found = unveil(self._catalog.ask(GetStoreSecret(info.store)).secret)
        except Corrupt as err:
            if not lost_is_ok:
                raise Refused(f"store {info.name}: {err}; {_again(info.name)}") from err
            found = StoreSecret()
        if info.options.credentials == KEPT and found.keys is None and not lost_is_ok:
            raise Refused(f"store {info.name}: its keys did not outlive a recovery of the metadata; {_again(info.name)}")
        return found


def _again(name: str) -> str:
    return f"give them again: `awsomefsd store set {name} --access-key-file F`"


def judged(url: str, asked: StoreAsked, before: StoreOptions, kept: StoreSecret) -> tuple[StoreOptions, StoreSecret]:
    """Returns the options and the secret of a store as they would be.  Raises ConfigError, which says what to give instead."""
    if asked.keys is not None and asked.role:
        raise ConfigError("a store is asked with keys or with the role of each machine; give one of both")
    changed: dict[str, Any] = {
        name: value
        for name in ("endpoint", "region", "ca", "proxy", "rpo_ms", "keep_ms")
        if (value := getattr(asked, name)) is not None
    }  # fmt: skip
    keys = kept.keys
    if asked.keys is not None:
        keys, changed["credentials"] = checked(asked.keys, "this store"), KEPT
    elif asked.role:
        keys, changed["credentials"] = None, OF_ROLE
    options = replace(before, **changed)
    _check_times(options)
    if len(options.ca.encode()) > STORE_CA_BYTES_MAX:
        raise ConfigError(f"certificates of a store have at most {STORE_CA_BYTES_MAX} bytes; give the authority's alone")
    if options.ca:
        check_certificates(options.ca.encode(), "of this store")
    if parse_store_url(url).kind != DIRECTORY and not options.credentials:
        raise ConfigError(
            f"{url}: nobody says how it is asked; give its keys by --access-key-file (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), "
            "or say --role where the machines have one"
        )
    if options.sealed and not kept.segments_key:
        kept = replace(kept, segments_key=new_key(), key_id=1)
    secret = replace(kept, keys=keys)
    open_store(url, options, keys).close()
    return options, secret


def _check_times(options: StoreOptions) -> None:
    if not STORE_RPO_MS_MIN <= options.rpo_ms <= STORE_RPO_MS_MAX:
        longest = f"{STORE_RPO_MS_MAX // _DAY}d"
        raise ConfigError(f"--rpo, how old what is not in the store yet may become, is {STORE_RPO_MS_MIN // 1_000}s to {longest}")
    if not STORE_KEEP_MS_MIN <= options.keep_ms <= STORE_KEEP_MS_MAX:
        raise ConfigError(f"--keep, for how long what is deleted stays in the store, is 1h to {STORE_KEEP_MS_MAX // _DAY}d")
