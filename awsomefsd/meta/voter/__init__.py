"""The voter decides the order of entries: alone, or with others by Raft."""
