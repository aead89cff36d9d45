"""The nodes that vote on the metadata, and the loops that change them."""
