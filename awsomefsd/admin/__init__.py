"""The admin API: gRPC on a unix socket, for root and one group.  admin.proto is its contract; the CLI uses nothing else."""
