"""Which nodes vote on the metadata, and the loops that change it."""
