"""The journal: the log on disk, and how the Raft core reads it."""
