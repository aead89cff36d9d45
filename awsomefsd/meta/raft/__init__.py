"""The Raft consensus core. It is pure: events go in, a Ready comes out."""
