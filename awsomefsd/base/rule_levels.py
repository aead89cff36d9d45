"""Levels of a cluster from which rules of the state machine changed.  Pure; levels.py says what a level is."""

from __future__ import annotations

CHECKPOINTS_OF_NODES = 3  # segments for checkpoints belong to nodes, so that any of several voters may write them
ERAS = 3  # devices have eras, so that nodes of before a recovery are refused them
MENDED_RULES = 3  # rules of older commands that were wrong; below this level every build keeps to the old ones
DELEGATION = 4  # mounts decide names; a lease of segments names the devices that are not seen; the last node ends its cluster
STORES = 5  # buckets and directories for objects are rows of the cluster.  Unfinished, like pools
SNAPSHOTS = 5  # states of a volume are kept and read.  Unfinished, like pools
POOLS = 5  # segments lie in bays of pool devices, in as many as their volume wants.  Unfinished (levels.py)
