"""How the kernel asks."""
