"""Pools: segments in bays of the nodes' own devices, written and read through segment servers.

Built so far: what serves the bays of a node, and what asks it from another one; no process does either yet.
"""
