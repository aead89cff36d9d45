"""The commands about stores of objects, and the one that the daemon runs to work at a store.  Not complete: in no help."""
