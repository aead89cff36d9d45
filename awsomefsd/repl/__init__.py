"""Replication to a second site. Built so far: the reader of the change stream, and its cursor."""
