"""A throwaway certificate authority for voters in tests and benchmarks."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import trustme

from awsomefsd.base.tls import TlsNow, contexts


class Authority:
    """Certificates that name a node's UUID as a DNS name."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def tls(self, node: str, role: str = "node", **options: Any) -> TlsNow:
        certificate = self._ca.issue_cert(node, organization_unit_name=role, **options)

        def configure(context: ssl.SSLContext) -> None:
            certificate.configure_cert(context)
            self._ca.configure_trust(context)

        made = contexts(configure)
        return lambda: made

    def bare(self) -> ssl.SSLContext:
        """Of a client that believes the authority and shows no certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context

    def write(self, node: str, directory: Path) -> tuple[Path, Path, Path]:
        """(authority, certificate, key) as PEM files."""
        certificate = self._ca.issue_cert(node, organization_unit_name="node")
        files = (directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
        self._ca.cert_pem.write_to_path(str(files[0]))
        files[1].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(files[2]))
        return files
