"""How machines become one cluster: tokens, certificates, the control port, who carries the metadata."""
