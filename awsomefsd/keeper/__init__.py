"""The keeper process: it holds the FUSE descriptor and the shared memory of every mount. It uses the standard library and base only."""
