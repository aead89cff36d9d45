"""The authority, certificates and the files they lie in."""

from __future__ import annotations

import datetime
import hashlib
import stat
import uuid
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from awsomefsd.base.errors import Corrupt, Refused
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.pki_files import PkiFiles

CLUSTER, NODE = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
DER = serialization.Encoding.DER


def test_a_certificate_says_who_and_nothing_the_request_asked_for() -> None:
    authority = ca.make_authority(CLUSTER)
    key = ca.make_key()
    wanted = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "king"), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "node")])
    private = serialization.load_pem_private_key(key.encode(), None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(wanted)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    request = builder.sign(private, hashes.SHA256()).public_bytes(DER)  # type: ignore[arg-type]
    pem = ca.sign(authority, request, NODE, "client")
    made = ca.identity(pem)
    assert (made.node, made.role, made.key) == (NODE, "client", ca.key_hash(key)) and ca.request_key(request) == made.key
    loaded = ca.load(pem)
    assert not loaded.extensions.get_extension_for_class(x509.BasicConstraints).value.ca and ca.fits(key, pem)
    assert ca.issuer_of(loaded, ca.load_bundle(ca.make_authority(CLUSTER).certificate + authority.certificate)) == authority.id
    assert ca.issuer_of(loaded, ca.load_bundle(ca.make_authority(CLUSTER).certificate)) == ""
    assert datetime.timedelta(days=29) < made.ends - ca.now() <= datetime.timedelta(days=30)
    assert made.begins < made.renew_at() < made.ends
    assert authority.id == hashlib.sha256(ca.load(authority.certificate).public_bytes(DER)).hexdigest()
    assert authority.key not in repr(authority)


def test_bad_requests_are_refused() -> None:
    authority = ca.make_authority(CLUSTER)
    good = ca.make_request(ca.make_key(), NODE)
    broken = bytearray(good)
    broken[-3] ^= 1
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    other_curve = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()).public_bytes(DER)
    other_kind = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()).public_bytes(DER)
    for bad in (b"", b"x", good[:-1], bytes(broken), other_curve, other_kind, b"x" * 5_000):
        with pytest.raises(Refused):
            ca.sign(authority, bad, NODE, "node")


def test_what_is_no_certificate_of_a_node() -> None:
    for bad in ("", "x", ca.make_authority(CLUSTER).certificate, b"", b"\x30\x00"):
        with pytest.raises(Corrupt):
            ca.identity(bad)


def test_files_and_their_modes(tmp_path: Path) -> None:
    files = PkiFiles(tmp_path)
    assert not files.there() and files.founded() is None
    authority = files.found(CLUSTER, NODE)
    assert files.there() and files.founded() == authority
    assert ca.identity(files.read_certificate()).node == NODE
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.directory.iterdir()} == {0o600}
    files.authority_stored()
    files.authority_stored()
    assert files.founded() is None and not files.authority_key.exists()
    with pytest.raises(Corrupt, match="another key"):
        files.write_certificate(ca.sign(authority, ca.make_request(ca.make_key(), NODE), NODE, "node"))


def test_a_join_that_was_begun_is_the_same_node_when_it_asks_again(tmp_path: Path) -> None:
    first = PkiFiles(tmp_path).pending()
    assert PkiFiles(tmp_path).pending() == first
    PkiFiles(tmp_path).joined()
    assert PkiFiles(tmp_path).pending()[0] != first[0]
