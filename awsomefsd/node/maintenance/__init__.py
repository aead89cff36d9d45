"""Background work: checkpoints, collection, scrub, quarantine."""
