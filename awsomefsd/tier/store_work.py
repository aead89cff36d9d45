"""The work at a store that a command waits for, in a process of its own: `awsomefsd store-work`, started by node/store_child.py.

The library for buckets may not be in a process that forks (s3_store.py), what hangs in a network filesystem can be left behind with its
process, and the memory of a check goes with it.  The job comes by standard input, so nothing of it is in a command line or an environment.
The answers are lines of JSON: {"finding": …} any number of times, then {"done": …} or {"error": …}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import ConfigError, Error
from awsomefsd.base.types import KEPT, OF_ROLE, StoreOptions
from awsomefsd.tier.claim import NO_MARKER, Claim, check_owner, claim
from awsomefsd.tier.credentials import ROLE, Credentials
from awsomefsd.tier.directory_store import DirectoryStore
from awsomefsd.tier.errors import ObjectMissing, StoreError, StoreForeign
from awsomefsd.tier.s3_store import REGION_DEFAULT, S3Options, S3Store
from awsomefsd.tier.store import ObjectStore
from awsomefsd.tier.store_check import LARGE_BYTES, StoreFinding, check_store
from awsomefsd.tier.store_url import DIRECTORY, parse_store_url

CHECK, CLAIM, OWNER = "check", "claim", "owner"
Tell = Callable[[dict[str, Any]], object]


class Job(Struct, frozen=True):
    """What is to be done.  `owned`: the prefix has to be the cluster's.  `era` to `index`: of CLAIM."""

    work: str
    url: str
    options: StoreOptions
    cluster: UUID
    keys: Credentials | None = None
    owned: bool = False
    era: UUID = UUID(int=0)
    created_ns: int = 0
    before: UUID | None = None
    index: int = 0
    large_bytes: int = LARGE_BYTES

    def __repr__(self) -> str:
        return f"Job({self.work!r}, {self.url!r}, …)"


def open_store(url: str, options: StoreOptions, keys: Credentials | None) -> ObjectStore:
    """Returns a store, and asks nobody.  Raises ConfigError for what cannot be, in words for whoever typed it."""
    found = parse_store_url(url)
    if found.kind == DIRECTORY:
        if options.endpoint or options.region or options.credentials or options.ca or options.proxy:
            raise ConfigError("a directory has no endpoint, region, credentials, certificates or proxy; leave them out")
        return DirectoryStore(found)
    if options.credentials == OF_ROLE:
        credentials: str | Credentials = ROLE
    elif options.credentials == KEPT and keys is not None:
        credentials = keys
    else:
        raise ConfigError(f"{found}: no credentials are there (any more); give them by --access-key-file, or say --role")
    return S3Store(found, S3Options(options.endpoint, options.region or REGION_DEFAULT, credentials, "", options.ca, options.proxy))


def run(raw: bytes, tell: Tell) -> None:
    """Does the job in `raw`, as `packed` makes it, and tells its lines.  Raises only what is a bug."""
    try:
        job = msgspec.json.decode(raw, type=Job)
    except (msgspec.DecodeError, UnicodeDecodeError):
        tell({"error": {"kind": "bug", "words": "the job of this process does not decode"}})
        return
    try:
        store = open_store(job.url, job.options, job.keys)
        try:
            tell({"done": _DO[job.work](store, job, tell)})
        finally:
            store.close()
    except StoreError as err:
        tell({"error": {"kind": err.kind, "words": str(err)}})
    except Error as err:
        tell({"error": {"kind": "settings", "words": str(err)}})


def packed(job: Job) -> bytes:
    return msgspec.json.encode(job)


def _check(store: ObjectStore, job: Job, tell: Tell) -> dict[str, Any]:
    def told(finding: StoreFinding) -> None:
        tell({"finding": msgspec.to_builtins(finding)})

    check_store(store, job.cluster, owned=job.owned, told=told, large_bytes=job.large_bytes)
    return {}


def _claim(store: ObjectStore, job: Job, _tell: Tell) -> dict[str, Any]:
    return {"era_number": claim(store, Claim(job.cluster, job.era, job.created_ns, job.owned, job.before, job.index))}


def _owner(store: ObjectStore, job: Job, _tell: Tell) -> dict[str, Any]:
    try:
        check_owner(store, job.cluster)
    except ObjectMissing as err:
        raise StoreForeign(f"{err}: {NO_MARKER}") from None
    return {}


_DO: dict[str, Callable[[ObjectStore, Job, Tell], dict[str, Any]]] = {CHECK: _check, CLAIM: _claim, OWNER: _owner}
