"""The CSI driver of a node: volumes for orchestrators such as Kubernetes."""
