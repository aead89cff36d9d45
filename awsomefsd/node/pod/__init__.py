"""In a pod: the keeper and the workers run on the host and outlive the pod."""
