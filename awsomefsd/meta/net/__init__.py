"""The connections of the metadata service: the listener, TLS, the links between voters."""
