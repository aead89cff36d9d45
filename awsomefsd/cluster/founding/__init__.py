"""Founding: nodes that hold one token become one cluster."""
