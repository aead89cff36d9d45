"""The metadata: names, attributes and layouts, decided by one replicated log."""
