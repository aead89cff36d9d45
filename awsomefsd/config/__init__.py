"""The settings of a node and the options of a mount, read and checked."""
