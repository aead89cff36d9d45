"""The checks of all rows (fsck), and the plan that repairs them."""
