"""The bytes: where they lie on devices, and how they are written, read and collected."""
