"""The caches of a mount, its open files, and what the kernel may believe of them."""
