"""The client of the metadata service: requests, the session of a mount, its inode leases."""
