"""The doctor: what is wrong on this node and in its cluster, measured from outside of the daemon, and a bundle for whoever has to help.

Every finding has a code of node/health/codes.py.  The checks of this package need no daemon; what the daemon answers is handed to them.
"""
