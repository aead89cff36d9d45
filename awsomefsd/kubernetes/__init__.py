"""The keeper of nodes in Kubernetes: a join token for those that come later, and the removal of those that are gone."""
