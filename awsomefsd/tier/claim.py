"""A cluster takes a prefix of a store: its marker is put, once and for ever, and the era of the cluster in it begins.

What is put follows from the cluster's row of the store alone (the time of the marker, the identity of the era), and the number of the era
is the first of which the store has none.  So whoever does it again, after a crash or an answer that was lost, puts the same objects.

A store has no condition.  Where two clusters take one prefix at the same moment, the later PUT stays, and the marker is read back: one of
them sees the other's and is refused; the marker is asked for at every connection, so it also stops whoever read its own before it was
replaced.  Two nodes of one cluster cannot come here for one URL: the rows have it once.

After a recovery a cluster begins another era in a prefix that is its own already.  It puts no marker then: where none is, that is another
bucket or an empty directory, and what the rows name lies elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from msgspec import Struct

from awsomefsd.base.errors import Corrupt
from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, StoreDown, StoreForeign
from awsomefsd.tier.names import MARKER, EraName
from awsomefsd.tier.object_format import ERA_BYTES, Era, Marker, pack_era, pack_marker, unpack_era
from awsomefsd.tier.store import ObjectStore, owner

ERAS_MAX = 10_000  # asked for before something is wrong with the store
VISIBLE_S = 60
PAUSE_S = 1.0
NO_MARKER = "the marker of this cluster is not there; is that the same bucket, prefix or directory?"


class Claim(Struct, frozen=True):
    """Whose a prefix is to be: the cluster, its era there, and the time that both objects carry.

    `owned`: it is the cluster's already, and entry `index` recovered that; `before`: the era that it knew then.
    """

    cluster: UUID
    era: UUID
    created_ns: int
    owned: bool = False
    before: UUID | None = None
    index: int = 0


def check_owner(store: ObjectStore, cluster: UUID) -> None:
    """Raises StoreForeign unless the prefix is the cluster's; ObjectMissing is what a store without a marker says."""
    found = owner(store).cluster
    if found != cluster:
        raise StoreForeign(f"{store.url}: the prefix belongs to cluster {found}, not to {cluster}; give another prefix")


def claim(store: ObjectStore, wanted: Claim, pause: Callable[[float], object] = time.sleep) -> int:
    """Takes the prefix, and returns the number of the era.  May be done again, by any node.

    Raises StoreForeign where it is another cluster's, and the StoreError of the store.
    """
    try:
        check_owner(store, wanted.cluster)
    except ObjectMissing as err:
        if wanted.owned:
            raise StoreForeign(f"{err}: {NO_MARKER}") from None
        store.put(MARKER, pack_marker(Marker(wanted.cluster, wanted.created_ns)))
        _until(lambda: check_owner(store, wanted.cluster), f"{store.url}: {MARKER}", pause)
    number = _begun(store, wanted)
    name = str(EraName(wanted.cluster, number))
    body = pack_era(Era(number, wanted.cluster, wanted.era, wanted.before, 0, wanted.index, wanted.created_ns))
    store.put(name, body)

    def read_back() -> None:
        if store.whole(name, ERA_BYTES) != body:
            raise StoreForeign(f"{store.url}: {name}: somebody else has begun this era; is the cluster running twice?")

    _until(read_back, f"{store.url}: {name}", pause)
    return number


def _begun(store: ObjectStore, wanted: Claim) -> int:
    """Returns the number of the era that is wanted: its own where it was put before, else the first that is free."""
    for number in range(1, ERAS_MAX):
        name = EraName(wanted.cluster, number)
        try:
            era = unpack_era(store.whole(str(name), ERA_BYTES))
        except ObjectMissing:
            return number
        except (Corrupt, ObjectDamaged) as err:
            raise StoreForeign(f"{store.url}: what lies at {name} is no era ({err}); give another prefix") from None
        if era.era == wanted.era:
            return number
    raise StoreForeign(f"{store.url}: answers for {ERAS_MAX} eras; that is no store of this cluster")


def _until(look: Callable[[], None], what: str, pause: Callable[[float], object]) -> None:
    """Looks until the store shows what was put."""
    for waited in range(int(VISIBLE_S / PAUSE_S)):
        if waited:
            pause(PAUSE_S)
        try:
            return look()
        except ObjectMissing:
            continue
    raise StoreDown(f"{what} cannot be read {VISIBLE_S} s after its PUT was acknowledged; try again later, or take another store")
