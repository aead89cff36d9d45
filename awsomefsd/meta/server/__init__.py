"""The metadata service: one thread that answers requests while this node leads."""
