"""The session of a mount: opening it, recovering from its loss, ending it."""
