"""The commands that other programs run: service managers, mount(8), probes, and scrub."""
