"""The identity of a node: a key of its own and a certificate that it signed itself.

::

    STATE/identity/key.pem     ECDSA P-256, mode 0600
    STATE/identity/cert.pem    X.509, self-signed

Both are made at the node's first start in ``identity.new``, flushed, and appear at once by a
rename: a node that is killed half-way makes them anew, and a key without its certificate is damage.
Only the process that holds the volume may call this; it blocks.

Peers know each other by the SHA-256 of the certificate, as ``openssl x509 -fingerprint -sha256``
shows it. So the certificate never ends, because a wrong clock must not part two nodes, and it can
sign no other. The extensions are those that OpenSSL's strict checks ask of a certificate that is
its own anchor.

The library for certificates is loaded by what deals with one: 'status' of a volume without peers
should not wait for it.

Source: RFC 5280, sections 4.1.2.5 and 4.2.1."""

import hashlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fusejournal.disk import calls
from fusejournal.disk.files import write_new
from fusejournal.errors import FusejournalError

if TYPE_CHECKING:
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_KEY: Final = "key.pem"
_CERTIFICATE: Final = "cert.pem"
_FILE_BYTES_MAX: Final = 64 << 10
_COMMON_NAME_BYTES_MAX: Final = 64
_VALID_FROM: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VALID_UNTIL: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280's date for a certificate that has no end."""
UNUSABLE: Final = "TLS cannot use its certificate: remove the peer and pair anew"
"""The fault of a peer that :func:`trust` could not take."""


@dataclass(frozen=True)
class Identity:
    """A node's certificate, and the files in which ``ssl`` finds it with its key."""

    certificate: str
    """PEM."""
    fingerprint: str
    certificate_path: Path
    key_path: Path


def load_or_make(directory: Path, node: str) -> Identity:
    """Returns the identity in *directory*, made for *node* if there is none. Raises
    FusejournalError for files that cannot be used, OSError where they cannot be written."""
    if not directory.exists() or not any(directory.iterdir()):
        _make(directory, node)
    return _load(directory)


@lru_cache(1024)
def fingerprint_of(pem: str) -> str:
    """Returns the fingerprint of the certificate *pem*. Raises ValueError."""
    from cryptography.hazmat.primitives import serialization

    return fingerprint_of_der(_parse(pem).public_bytes(serialization.Encoding.DER))


def fingerprint_of_der(der: bytes) -> str:
    """Returns the fingerprint of the certificate with these bytes."""
    return f"SHA256:{hashlib.sha256(der).hexdigest()}"


def node_id_of(fingerprint: str) -> int:
    """Returns the id of the node whose certificate has *fingerprint*: never 0, which means that it
    is not known."""
    return int(fingerprint.removeprefix("SHA256:")[:16], 16) or 1


def normalize(pem: str) -> str:
    """Returns the one certificate in *pem*, in the one form that both libraries read, where it is
    good for TLS. Raises ValueError for anything else."""
    import ssl

    from cryptography.hazmat.primitives import serialization

    certificate = _parse(pem).public_bytes(serialization.Encoding.PEM).decode("ascii")
    if not trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate):
        raise ValueError("a certificate that TLS cannot use")
    return certificate


def trust(context: "ssl.SSLContext", certificate: str) -> bool:
    """Lets *context* accept the node that has *certificate* (PEM). Returns whether it can."""
    import ssl

    try:
        context.load_verify_locations(cadata=certificate)
    except ssl.SSLError:
        return False
    return True


def _parse(pem: str) -> "x509.Certificate":
    from cryptography import x509

    try:
        (certificate,) = x509.load_pem_x509_certificates(pem.encode("ascii"))
    except Exception:  # what cryptography raises for nonsense has no common base
        raise ValueError("not one certificate in PEM") from None
    return certificate


def _load(directory: Path) -> Identity:
    import ssl

    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    paths = directory / _CERTIFICATE, directory / _KEY
    texts = []
    for path in paths:
        try:
            with open(path, encoding="ascii") as file:
                texts.append(file.read(_FILE_BYTES_MAX))
        except UnicodeDecodeError:
            raise _spoilt(path, "is not PEM") from None
        except OSError as error:
            raise _spoilt(path, f"cannot be read: {error.strerror}") from None
    certificate, key = texts
    try:
        fingerprint = fingerprint_of(certificate)
    except ValueError as error:
        raise _spoilt(paths[0], f"is spoilt: {error}") from None
    try:
        serialization.load_pem_private_key(key.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _spoilt(paths[1], "is spoilt: not a private key in PEM") from None
    try:
        _parse(certificate).verify_directly_issued_by(_parse(certificate))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths)
    except (ValueError, TypeError, InvalidSignature, ssl.SSLError):
        raise _spoilt(directory, "the key and the certificate do not belong together") from None
    return Identity(normalize(certificate), fingerprint, *paths)


def _spoilt(path: Path, reason: str) -> FusejournalError:
    return FusejournalError(
        f"{path}: {reason}; restore the directory from a copy, or remove it and pair all peers anew"
    )


def _make(directory: Path, node: str) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    temporary = directory.with_name(f"{directory.name}.new")
    if temporary.exists():
        shutil.rmtree(temporary)  # of a start that was killed half-way
    temporary.mkdir(mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(key, node).public_bytes(serialization.Encoding.PEM)
    plain_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_new("identity.key", temporary / _KEY, plain_key)
    write_new("identity.certificate", temporary / _CERTIFICATE, certificate, mode=0o644)
    calls.fsync_directory("identity.new.directory", temporary)
    calls.rename("identity.rename", temporary, directory)
    calls.fsync_directory("identity.directory", directory.parent)


def _sign(key: "ec.EllipticCurvePrivateKey", node: str) -> "x509.Certificate":
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    # The name only helps an admin who looks at the certificate; nothing compares it.
    cut = node.encode("utf-8", "replace")[:_COMMON_NAME_BYTES_MAX]
    common_name = cut.decode("utf-8", "ignore") or "fusejournal"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    own_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(own_key, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_key), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def _key_usage() -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
