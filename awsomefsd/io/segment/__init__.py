"""Segments, the append-only units of allocation, and the frames in them."""
