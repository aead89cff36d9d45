"""The files of a node that holds a founding token, until it is in the cluster: state_dir/founding/TOKEN-ID/, and pki/ beside it.

    pki/node.key, pki/pending.json   this node's key and UUID; they stay when it joins (cluster/pki/pki_files.py)
    authority.json                   the CA that it would found with
    node.pem                         its certificate by that CA, for TLS while founding
    promises.json                    what it promised and accepted (founding.py)

Every file is replaced as a whole and synced.  Promises belong to one token and are kept for as long as the node is in no cluster, also when
another token is tried in between: a promise that was forgotten could let two clusters form.  node.json comes last and ends all of this:
a crash before it repeats the step with the same key, UUID and CA; after it, the directory is removed, now or at the next start.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from awsomefsd.base import durable, failpoints, identity
from awsomefsd.base.errors import Corrupt
from awsomefsd.cluster.founding.founder import TOKEN_ROW
from awsomefsd.cluster.founding.founding import Kept
from awsomefsd.cluster.messages import Joined
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.founding_token import FoundingToken
from awsomefsd.cluster.pki.issued import accept
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import Settings


class FoundingFiles:
    """The files of one token on this node.  The constructor makes what is missing, and raises Corrupt for a damaged file, OSError."""

    def __init__(self, state_dir: Path, token: FoundingToken) -> None:
        self._state_dir = state_dir
        self._token = token
        self._pki = PkiFiles(state_dir)
        self._directory = state_dir / "founding" / token.id
        identity.make_directory(state_dir, 0o700)
        identity.make_directory(self._directory, 0o700)
        durable.sync_directory(state_dir)
        durable.sync_directory(self._directory.parent)
        self.node, self.key = self._pki.pending()
        self.authority = self._authority()
        pem = ca.sign(self.authority, self.request(), self.node, "node")
        self.shown = ca.load(pem).public_bytes(Encoding.DER)  # the certificate that TLS presents
        self.certificate_path = self._directory / "node.pem"
        self.certificate_path.write_text(pem)
        self.key_path = self._pki.key
        self.kept = self._read_promises()

    def _authority(self) -> ca.Authority:
        path = self._directory / "authority.json"
        held = durable.read_json(path)
        if held is None:
            made = ca.make_authority(self._token.cluster_uuid)
            durable.write_json(path, {"certificate": made.certificate, "key": made.key})
            return made
        try:
            return ca.Authority(ca.id_of(ca.load(held["certificate"])), held["certificate"], held["key"])
        except (KeyError, TypeError, AttributeError) as err:
            raise Corrupt(f"{path} is damaged") from err

    def _read_promises(self) -> Kept:
        path = self._directory / "promises.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return Kept()
        except msgspec.DecodeError as err:
            raise Corrupt(
                f"{path} is damaged ({err}); this node's vote is lost; make a new founding token and give it to all nodes"
            ) from err

    def store(self, kept: Kept) -> None:
        """Stores the promises, durable when this returns.  Raises OSError."""
        failpoints.hit("founding.store.before")
        durable.write_file(self._directory / "promises.json", msgspec.json.encode(kept))
        failpoints.hit("founding.store.after")

    def request(self) -> bytes:
        return ca.make_request(self.key, self.node)

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def found(self, site: int) -> None:
        """Makes the cluster, of one node so far: this node was decided as the founder."""

        def prepare(_made: identity.Node) -> None:
            durable.write_file(self._pki.authority_key, self.authority.key.encode())
            self._pki.write_bundle(self.authority.certificate)
            self._pki.write_certificate(ca.sign(self.authority, self.request(), self.node, "node"))
            durable.write_json(self._state_dir / "pki" / TOKEN_ROW, self._token_row())
            self._entering()

        identity.init(self._state_dir, site, self._token.cluster_uuid, self.node, prepare)
        self._entered()

    def _token_row(self) -> dict[str, object]:
        """Returns the token's row for nodes that come later; the founder has used the token once itself."""
        token = self._token
        return {"id": token.id, "verifier": token.verifier.hex(), "expires_ms": token.expires_ms, "uses": token.nodes - 1}

    def join(self, settings: Settings, joined: Joined) -> None:
        """Makes this machine a node of the cluster that let it in.  Does nothing if it is a node already.  Raises Refused (issued.py)."""
        with identity.lock_to_enter(self._state_dir, "joining"):
            if identity.identity_path(self._state_dir).exists():
                return
            made = accept(settings, self._pki, self._token.cluster_uuid, self.node, "node", joined)
            self._entering()
            identity.write(self._state_dir, made)
        self._entered()

    def _entering(self) -> None:
        failpoints.hit("founding.identity.before")

    def _entered(self) -> None:
        failpoints.hit("founding.identity.after")
        self._pki.joined()
        shutil.rmtree(self._state_dir / "founding", ignore_errors=True)  # daemon/without_identity.py does it again at each start
