"""The cluster's own certificate authority: EC P-256 keys, certificates that name a node, and nothing else.

A node's certificate has one DNS name, the node's UUID, and in the subject's OU its role ("node" or "client").  The server decides, request
by request, from these and from the node's row what the node may do.  An authority is known by its `id`, the SHA-256 of its certificate's
DER: a token pins it.  The private key of an authority is only ever in the replicated state and, before the first start, in ca.key.

A request (CSR) is believed in one thing only, its public key, which its own signature proves: name and role of the certificate are the
signer's decision.  Copying the subject of a request was rejected: a joiner would choose its own rights.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from awsomefsd.base.errors import Corrupt, Refused

CA_LIFE = datetime.timedelta(days=3_650)
NODE_LIFE = datetime.timedelta(days=30)
SKEW = datetime.timedelta(hours=1)  # clocks of nodes may differ by so much
ROLES = ("node", "client")
REQUEST_BYTES_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority: `id`, certificate and private key, both PEM."""

    id: str
    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CertifiedNode:
    """The facts in a node's certificate.  `key`: SHA-256 of its public key."""

    node: str
    role: str
    begins: datetime.datetime
    ends: datetime.datetime
    key: bytes

    def renew_at(self) -> datetime.datetime:
        """Returns the time at two thirds of its life."""
        return self.begins + (self.ends - self.begins) * 2 / 3


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _private(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError) as err:
        raise Corrupt(f"a private key is damaged: {err}") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Corrupt("a private key is of the wrong kind: EC P-256 is expected")
    return key


def load(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as err:
        raise Corrupt(f"a certificate is damaged: {err}") from err


def load_der(raw: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(raw)
    except ValueError as err:
        raise Corrupt(f"a certificate is damaged: {err}") from err


def in_time(certificate: x509.Certificate, at: datetime.datetime | None = None) -> bool:
    """Returns True if the certificate is valid at `at` (default: now); clocks may differ by SKEW."""
    at = at or now()
    return certificate.not_valid_before_utc - SKEW <= at <= certificate.not_valid_after_utc + SKEW


def check_node(node: str) -> None:
    """Raises Refused for a text that is no UUID in its usual form."""
    try:
        if str(uuid.UUID(node)) == node:
            return
    except ValueError:
        pass
    raise Refused("a node is named by a UUID in small letters")


def load_bundle(pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError as err:
        raise Corrupt(f"the authorities' certificates are damaged: {err}") from err


def id_of(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def bundle_hash(pem: str) -> str:
    """Returns a hash that is the same for the same authorities, in any order."""
    return hashlib.sha256("".join(sorted(map(id_of, load_bundle(pem)))).encode()).hexdigest()


def _key_hash(key: object) -> bytes:
    public = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(*public)).digest()  # type: ignore[attr-defined]


def make_authority(cluster: str, at: datetime.datetime | None = None) -> Authority:
    """Returns a new authority for a cluster, valid from `at` (default: now)."""
    at = at or now()
    key = ec.generate_private_key(ec.SECP256R1())
    skid = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Each authority has a name of its own: during a rotation two are trusted, and OpenSSL finds an issuer by its name.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"awsomefs authority {skid.digest.hex()[:16]}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
        ]
    )
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates and revocations, no more
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - SKEW)
        .not_valid_after(at + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(skid, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(id_of(made), made.public_bytes(serialization.Encoding.PEM).decode(), _pem(key))


def make_key() -> str:
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def make_request(key: str, node: str) -> bytes:
    """Returns a certificate request (DER) for a private key (PEM)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(_private(key), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def _checked_request(raw: bytes) -> x509.CertificateSigningRequest:
    if len(raw) > REQUEST_BYTES_MAX:
        raise Refused(f"a certificate request has at most {REQUEST_BYTES_MAX} bytes")
    try:
        request = x509.load_der_x509_csr(raw)
        good = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, InvalidSignature) as err:
        raise Refused(f"this is not a certificate request: {err}") from err
    if not good:
        raise Refused("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused("the certificate request has a key of another kind than EC P-256")
    return request


def request_key(raw: bytes) -> bytes:
    """Returns the SHA-256 of the public key of a request, which proves to have the private one.  Raises Refused."""
    return _key_hash(_checked_request(raw).public_key())


def sign(
    authority: Authority, raw: bytes, node: str, role: str, at: datetime.datetime | None = None, life: datetime.timedelta = NODE_LIFE
) -> str:
    """Returns the certificate (PEM) of a node for the key of its request.  Raises Refused for a bad request."""
    assert role in ROLES and str(uuid.UUID(node)) == node
    at = at or now()
    request = _checked_request(raw)
    issuer, issuer_key = load(authority.certificate), _private(authority.key)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, node), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(issuer.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - min(SKEW, life))
        .not_valid_after(min(at + life, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def identity(certificate: x509.Certificate | bytes | str) -> CertifiedNode:
    """Returns the node that a certificate (also PEM text or DER bytes) names; its issuer is not checked.

    Raises Corrupt for other certificates.
    """
    try:
        if isinstance(certificate, bytes):
            certificate = x509.load_der_x509_certificate(certificate)
        elif isinstance(certificate, str):
            certificate = x509.load_pem_x509_certificate(certificate.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        roles = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        [node], [role] = names, [str(attribute.value) for attribute in roles]
        if str(uuid.UUID(node)) != node or role not in ROLES:
            raise ValueError("it names no node and role")
    except (ValueError, x509.ExtensionNotFound) as err:
        raise Corrupt(f"not the certificate of a node: {err}") from err
    # Skewed back by at most SKEW when it was made; the life is counted from there.
    return CertifiedNode(node, role, certificate.not_valid_before_utc, certificate.not_valid_after_utc, _key_hash(certificate.public_key()))


def issuer_of(certificate: x509.Certificate, bundle: list[x509.Certificate]) -> str:
    """Returns the id of the authority in the bundle that signed it, "" for none."""
    for authority in bundle:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return id_of(authority)
    return ""


def fits(key: str, certificate: str) -> bool:
    """Returns True if a private key belongs to a certificate."""
    return _key_hash(_private(key).public_key()) == _key_hash(load(certificate).public_key())


def key_hash(key: str) -> bytes:
    """Returns the SHA-256 of the public half of a private key."""
    return _key_hash(_private(key).public_key())
