"""A node's key and certificate: made once, whole or not at all, and good for TLS."""

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import FusejournalError
from fusejournal.wire.connection import tls_context
from fusejournal.wire.identity import Identity, fingerprint_of, load_or_make, normalize, trust
from tests.support.certificates import bad_name, bad_version


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    failpoints.listen(None)


def test_it_is_made_once(tmp_path: Path) -> None:
    made = load_or_make(tmp_path / "identity", "one")
    assert load_or_make(tmp_path / "identity", "other") == made
    assert made.fingerprint == fingerprint_of(made.certificate)
    assert made.fingerprint.startswith("SHA256:")
    assert made.key_path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o700
    assert load_or_make(tmp_path / "second", "one").fingerprint != made.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["identity", "second"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    load_or_make(tmp_path / "identity", "one")


def test_a_version_that_cannot_be(tmp_path: Path) -> None:
    forged = bad_version(load_or_make(tmp_path / "identity", "one").certificate)
    for parse in (normalize, fingerprint_of):
        with pytest.raises(ValueError, match="not one certificate"):
            parse(forged)


def test_what_only_one_library_reads(tmp_path: Path) -> None:
    good = load_or_make(tmp_path / "identity", "one").certificate
    forged = bad_name(good)
    assert fingerprint_of(forged) != fingerprint_of(good)
    with pytest.raises(ValueError, match="TLS cannot use"):
        normalize(forged)


@pytest.mark.parametrize("node", ["", "ü" * 100, "a" * 200, "a,b=c/d"])
def test_any_name_will_do(tmp_path: Path, node: str) -> None:
    load_or_make(tmp_path / "identity", node)


def test_failed_anywhere_it_is_made_anew(tmp_path: Path) -> None:
    """Each call fails once; what a start leaves behind never harms the next one."""
    labels: list[str] = []
    failpoints.listen(labels.append)
    load_or_make(tmp_path / "counted", "one")
    assert len(labels) == 7
    for number in range(1, len(labels) + 1):
        directory = tmp_path / f"{number}" / "identity"
        directory.parent.mkdir()
        failpoints.listen(failpoints.PlannedFault("identity.*", number, "EIO"))
        with pytest.raises(OSError, match="planned"):
            load_or_make(directory, "one")
        failpoints.listen(None)
        assert not directory.exists() or number == len(labels)
        made = load_or_make(directory, "one")
        assert load_or_make(directory, "one") == made
        assert os.listdir(directory.parent) == ["identity"]


MAKE = """
import sys
from pathlib import Path
from fusejournal.disk import failpoints
from fusejournal.wire.identity import load_or_make
failpoints.listen_to_environment()
load_or_make(Path(sys.argv[1]), "one")
"""


@pytest.mark.parametrize("number", range(1, 8))
def test_kill_9_at_each_call(tmp_path: Path, number: int) -> None:
    directory = tmp_path / "identity"
    plan = {"FUSEJOURNAL_FAULT": f"identity.*:{number}:kill"}
    killed = subprocess.run(
        [sys.executable, "-c", MAKE, str(directory)], check=False, env={**os.environ, **plan}
    )
    assert killed.returncode == -signal.SIGKILL
    there = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    assert there in ([], ["cert.pem", "key.pem"])
    made = load_or_make(directory, "one")
    assert load_or_make(directory, "one") == made
    assert os.listdir(tmp_path) == ["identity"]


@pytest.mark.parametrize("name", ["key.pem", "cert.pem"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\0", b"-----BEGIN CERTIFICATE-----\n"])
def test_spoilt_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    load_or_make(tmp_path / "identity", "one")
    path = tmp_path / "identity" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FusejournalError, match=rf"^{path}: .*pair all peers anew$"):
        load_or_make(tmp_path / "identity", "one")


def test_a_key_of_another_is_found(tmp_path: Path) -> None:
    one = load_or_make(tmp_path / "one", "one")
    other = load_or_make(tmp_path / "other", "one")
    one.key_path.write_bytes(other.key_path.read_bytes())
    with pytest.raises(FusejournalError, match="do not belong together"):
        load_or_make(tmp_path / "one", "one")


@pytest.mark.parametrize("pem", ["", "nonsense", "ü", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate(pem: str) -> None:
    with pytest.raises(ValueError, match="not one certificate"):
        fingerprint_of(pem)


def test_only_one_certificate_is_taken(tmp_path: Path) -> None:
    one = load_or_make(tmp_path / "one", "one").certificate
    assert normalize(f"words\n{one}") == one
    with pytest.raises(ValueError, match="not one certificate"):
        normalize(one + load_or_make(tmp_path / "other", "other").certificate)


def _shake(
    client: tuple[Identity, list[str]],
    server: tuple[Identity, list[str]],
    flags: ssl.VerifyFlags = ssl.VERIFY_DEFAULT,
) -> tuple[bytes | None, bytes | None]:
    """Makes a handshake in memory. Returns what each end sees of the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    contexts = (
        tls_context(ssl.Purpose.SERVER_AUTH, client[0], is_verified=True),
        tls_context(ssl.Purpose.CLIENT_AUTH, server[0], is_verified=True),
    )
    for context, known in zip(contexts, (client[1], server[1]), strict=True):
        for certificate in known:
            assert trust(context, certificate)
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        context.verify_flags |= flags
    one = contexts[0].wrap_bio(to_client, to_server)
    two = contexts[1].wrap_bio(to_server, to_client, server_side=True)
    for end in (one, two, one, two):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert one.version() == two.version() == "TLSv1.3"
    return one.getpeercert(True), two.getpeercert(True)


# The second is what Python 3.13 and later add by default.
@pytest.mark.parametrize("flags", [ssl.VERIFY_DEFAULT, ssl.VERIFY_X509_PARTIAL_CHAIN])
def test_it_is_its_own_anchor_under_strict_checks(
    identities: dict[str, Identity], flags: ssl.VerifyFlags
) -> None:
    a, b, c = identities.values()
    known = [c.certificate, b.certificate]
    seen_by_a, seen_by_b = _shake((a, known), (b, [a.certificate]), flags)
    assert seen_by_a == ssl.PEM_cert_to_DER_cert(b.certificate)
    assert seen_by_b == ssl.PEM_cert_to_DER_cert(a.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake((a, [c.certificate]), (b, [a.certificate]), flags)
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake((a, [b.certificate]), (b, []), flags)


def test_a_known_certificate_with_the_same_name_is_not_enough(tmp_path: Path) -> None:
    a, b, c = (load_or_make(tmp_path / name, "same") for name in "abc")
    _shake((a, [c.certificate, b.certificate]), (b, [c.certificate, a.certificate]))
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake((a, [c.certificate]), (b, [a.certificate]))
