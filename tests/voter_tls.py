"""A throwaway certificate authority for voters in tests and benchmarks."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from awsomefsd.meta.peers import Tls


class Authority:
    """Certificates that name a node's UUID as a DNS name."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def tls(self, node: str) -> Tls:
        certificate = self._ca.issue_cert(node)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            certificate.configure_cert(context)
            self._ca.configure_trust(context)
        return Tls(server, client)

    def write(self, node: str, directory: Path) -> tuple[Path, Path, Path]:
        """(authority, certificate, key) as PEM files."""
        certificate = self._ca.issue_cert(node)
        files = (directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
        self._ca.cert_pem.write_to_path(str(files[0]))
        files[1].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(files[2]))
        return files
