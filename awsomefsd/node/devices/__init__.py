"""The devices of the cluster as this node sees them: scan, add, grow, drain, remove."""
