"""fsck checks and repairs the volumes that orchestrators asked for: records, their names, and claims.

Names follow from records.  A record or a claim of a volume that is gone has no meaning any more; of claims that exclude each other the one
with the newest epoch stays: the rule of the machine would have refused it while the older one was known.  Marked ones exclude no other.
"""

from __future__ import annotations

from awsomefsd.meta.check.repair_txn import RepairTxn
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination


def check_csi(exam: Examination, volumes: dict[int, rows.VolumeRow], next_epoch: int) -> None:
    """Adds the faults of records, names and claims to `exam`."""
    live = {number for number, row in volumes.items() if not row.deleted}
    named = {row.name: row.id for _, row in exam.rows(keys.kind_range(0, keys.CSI_VOLUME), rows.CSI_VOLUME) if _sound(exam, row, live)}
    names = {
        key[keys.PREFIX_BYTES :].decode(errors="replace"): row.id
        for key, row in exam.rows(keys.kind_range(0, keys.CSI_NAME), rows.CSI_NAME)
    }
    for name in sorted(named.keys() | names.keys()):
        if named.get(name) != names.get(name):
            exam.fault("csi-name", name, f"the index says {names.get(name)}, the records {named.get(name)}")
    held: dict[tuple[int, str], list[rows.ClaimRow]] = {}
    for _, row in exam.rows(keys.kind_range(0, keys.CLAIM), rows.CLAIM):
        if not row.fenced:
            held.setdefault((row.volume, row.path), []).append(row)
        if row.volume not in live or row.epoch >= next_epoch:
            exam.fault("claim", f"volume {row.volume} node {row.node}", f"epoch {row.epoch}; the volume or the epoch does not exist")
    for (volume, path), claims in held.items():
        if len(claims) > 1 and any(row.exclusive for row in claims):
            exam.fault("claim", f"volume {volume} path {path!r}", f"{len(claims)} nodes use what one has alone")


def _sound(exam: Examination, row: rows.CsiVolumeRow, live: set[int]) -> bool:
    if row.volume not in live:
        exam.fault("csi-volume", row.id, f"volume {row.volume} does not exist")
    return True


def repair_csi(repairs: RepairTxn) -> None:
    """Repairs records, names and claims in the overlay."""
    live = {row.volume for row in repairs.volumes() if not row.deleted}
    names = {}
    for key, row in repairs.scan(keys.kind_range(0, keys.CSI_VOLUME), rows.CSI_VOLUME):
        if row.volume in live and key == keys.csi_volume(row.id):
            names[keys.csi_name(row.name)] = rows.CSI_NAME.dumps(rows.CsiNameRow(row.id))
            continue
        repairs.overlay.delete(key)
        repairs.note(f"volume {row.id} of an orchestrator", "removed: its volume does not exist", loss=True)
    repairs.index(keys.kind_range(0, keys.CSI_NAME), names, "names of an orchestrator's volumes")
    held: dict[tuple[int, str], list[rows.ClaimRow]] = {}
    epochs = repairs.cluster().next_epoch
    for key, row in repairs.scan(keys.kind_range(0, keys.CLAIM), rows.CLAIM):
        if row.volume in live and row.epoch < epochs and key == keys.claim(row.volume, row.node, row.path):
            if not row.fenced:
                held.setdefault((row.volume, row.path), []).append(row)
            continue
        repairs.overlay.delete(key)
        repairs.note(f"claim of node {row.node}", f"removed: volume {row.volume} or epoch {row.epoch} does not exist")
    for claims in held.values():
        claims.sort(key=lambda row: row.epoch)
        for row in claims[:-1] if any(row.exclusive for row in claims) else ():
            repairs.overlay.delete(keys.claim(row.volume, row.node, row.path))
            repairs.note(f"claim of node {row.node}", f"ends: another node has volume {row.volume} alone", loss=True)
