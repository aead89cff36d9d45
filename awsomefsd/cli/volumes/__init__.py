"""The commands about what volumes have: snapshots.  Not complete: in no help."""
