"""How two sites agree.  Built so far: the reader of the change stream and its cursor store."""
