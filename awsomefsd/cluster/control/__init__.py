"""The control port of a node: join, renew, rotate, leave."""
