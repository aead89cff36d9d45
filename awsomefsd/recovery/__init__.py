"""Work on a stopped node: fsck, device recovery, backup, restore, dump."""
