"""The command line, one file a command group. It asks a running daemon by the admin API alone.

Commands for a stopped node call `recovery`; those in processes/ run the processes of a node.
"""
