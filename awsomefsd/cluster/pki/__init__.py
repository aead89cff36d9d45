"""Certificates, tokens, and the authority that signs."""
