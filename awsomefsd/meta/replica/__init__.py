"""Log, state machine and store of one node, in the order of their durable effects."""
