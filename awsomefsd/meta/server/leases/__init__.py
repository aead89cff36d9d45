"""The leader's leases: who holds which inode, what a request is in conflict with, recalls, and the queues of those that wait."""
