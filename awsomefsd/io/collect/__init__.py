"""Collection of sparse segments, and the checkpoint areas on a device."""
