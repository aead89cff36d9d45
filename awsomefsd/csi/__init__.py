"""The CSI driver of a node: volumes for Kubernetes and other orchestrators."""
