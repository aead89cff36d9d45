"""The requests, replies and log commands of the metadata service, one subject a file."""
