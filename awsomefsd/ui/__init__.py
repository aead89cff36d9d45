"""The web page of a node: what the cluster is and how it is, for people. It asks the daemon by the admin API, and changes nothing."""
