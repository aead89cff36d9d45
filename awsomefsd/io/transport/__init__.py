"""The connections that bulk data takes between nodes: records, sealed where they leave the machine."""
