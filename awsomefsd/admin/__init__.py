"""The admin API: gRPC on a unix socket, for root and one group. The CLI uses nothing else."""
