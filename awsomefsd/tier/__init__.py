"""The object tier: a bucket or a directory as the cold end of devices, or as the only storage a volume has.

Built so far: the names and formats of objects (pure), the stores to put them in, the check of a store, and how a cluster takes one for its
own.  No data of a volume goes there yet.
"""
