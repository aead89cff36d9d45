"""The node daemon: it builds all parts of a node and ends them."""
