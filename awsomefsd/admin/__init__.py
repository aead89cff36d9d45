"""The admin API: gRPC on a unix socket, for root and one group. The CLI asks a running daemon by it alone."""
