"""The keeper and the workers of a daemon in a pod: they run on the host and outlive the pod."""
