"""The worker process: it builds one mount out of its parts and takes over from a dead predecessor."""
