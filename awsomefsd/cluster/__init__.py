"""Machines become one cluster: founding, joining, certificates, membership."""
