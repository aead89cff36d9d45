"""The certificate files of a node in state_dir/pki: node.pem and node.key, ca.pem, and until the first start of a founder, ca.key.

This node shows node.pem, and trusts the authorities in ca.pem.  Each file is replaced as a whole and durably, so a crash leaves the old or
the new one.  No two of them must change together: the key of a node is made once and kept over renewals, so node.pem always fits it, and
ca.pem grows before anything is signed by a new authority.  pending.json is the UUID of a join that was begun: asking again after a crash
is the same node with the same key, and uses no token twice.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from awsomefsd.base import durable
from awsomefsd.base.errors import Corrupt, NotFound
from awsomefsd.base.identity import make_directory
from awsomefsd.cluster.pki import ca


class PkiFiles:
    """The files of one state directory, which is made when something is written.  Methods that write raise OSError."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir / "pki"
        self.bundle = self.directory / "ca.pem"
        self.certificate = self.directory / "node.pem"
        self.key = self.directory / "node.key"
        self.authority_key = self.directory / "ca.key"
        self._pending = self.directory / "pending.json"

    def there(self) -> bool:
        """Returns True if this node has certificate, key and authorities."""
        return self.certificate.exists() and self.key.exists() and self.bundle.exists()

    def stamp(self) -> tuple[int, ...]:
        """Returns what differs as soon as this node has another certificate or other authorities.  Two stat calls."""
        return tuple(found for path in (self.bundle, self.certificate) for found in _stamp(path))

    def pending(self) -> tuple[str, str]:
        """Returns (UUID, private key) of the node that joins: the same ones until `joined`."""
        make_directory(self.directory, 0o700)
        held = durable.read_json(self._pending, {}).get("node")
        if not isinstance(held, str):
            held = str(uuid.uuid4())
            durable.write_json(self._pending, {"node": held})
        return held, self.own_key()

    def own_key(self) -> str:
        """Returns the private key (PEM), and makes it when there is none."""
        make_directory(self.directory, 0o700)
        try:
            return self.key.read_text()
        except FileNotFoundError:
            durable.write_file(self.key, ca.make_key().encode(), 0o600)
            return self.key.read_text()

    def joined(self) -> None:
        """Ends the pending join: node.json is written."""
        self._pending.unlink(missing_ok=True)

    def write_bundle(self, pem: str) -> None:
        """Writes the trusted authorities durably.  Raises Corrupt for a text that is no certificates."""
        ca.load_bundle(pem)
        make_directory(self.directory, 0o700)
        durable.write_file(self.bundle, pem.encode(), 0o600)

    def write_certificate(self, pem: str) -> None:
        """Writes this node's certificate durably.  Raises Corrupt if it does not fit the key."""
        if not ca.fits(self.own_key(), pem):
            raise Corrupt("a certificate was issued for another key than this node's")
        durable.write_file(self.certificate, pem.encode(), 0o600)

    def found(self, cluster: str, node: str) -> ca.Authority:
        """Makes and returns a new authority, and this node's certificate by it.

        ca.key goes when the state has the authority (`authority_stored`).
        """
        key = self.own_key()
        authority = ca.make_authority(cluster)
        durable.write_file(self.authority_key, authority.key.encode(), 0o600)
        self.write_bundle(authority.certificate)
        self.write_certificate(ca.sign(authority, ca.make_request(key, node), node, "node"))
        return authority

    def founded(self) -> ca.Authority | None:
        """Returns the authority that `found` made, until `authority_stored`; then None."""
        try:
            key = self.authority_key.read_text()
        except FileNotFoundError:
            return None
        pem = self.read_bundle()
        return ca.Authority(ca.id_of(ca.load(pem)), pem, key)

    def authority_stored(self) -> None:
        """Removes ca.key durably."""
        with contextlib.suppress(FileNotFoundError):
            self.authority_key.unlink()
            durable.sync_directory(self.directory)

    def read_bundle(self) -> str:
        return self._read(self.bundle)

    def read_certificate(self) -> str:
        return self._read(self.certificate)

    def _read(self, path: Path) -> str:
        try:
            return path.read_text()
        except FileNotFoundError:
            raise NotFound(f"{path} is not there: this node has no certificate; awsomefsd join gets one") from None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
