"""What the names mean, agreed by a quorum."""
