"""The interface of a filesystem, and the values that go with a request."""
