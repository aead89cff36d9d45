"""Names that vulture takes for dead: used by a protocol, a framework or a format.  One line each, grouped by who uses them."""
