"""The commands that look: events, figures, files and trees.  They change nothing."""
