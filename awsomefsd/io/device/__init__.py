"""Block devices, and files that stand for them: opening, identifying, reading and writing them."""
