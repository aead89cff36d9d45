"""The process of a node that serves its devices of pools: it attaches them, asks the leader, and tells its daemon how they are."""
