"""awsomefsd: one binary that turns the storage of a group of Linux machines into one POSIX filesystem."""

__version__ = "0.1.0"
