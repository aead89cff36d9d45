"""The tasks of one node beside its metadata service."""
