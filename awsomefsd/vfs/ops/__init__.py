"""The operations of a mount, one subject a file."""
