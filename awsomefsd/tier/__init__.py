"""The object tier: a bucket or a directory as the cold end of devices, or as the only storage a volume has.

Built so far, and used by no process yet: the names and formats of objects (pure), the stores to put them in, and the check of a store.
"""
