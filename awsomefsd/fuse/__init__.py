"""The FUSE protocol: requests of the kernel in, replies out, over memory that outlives the worker."""
