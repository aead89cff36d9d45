"""The bench for users: how fast a node, the way to the others and a mount are, measured from outside of the daemon."""
