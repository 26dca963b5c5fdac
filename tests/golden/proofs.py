"""The proofs that two releases have to agree on, made with fixed keys: of a pass, of an end without
TLS, and of an end of a pairing."""

from pathlib import Path
from unittest import mock

from fusejournal.wire.frames import PairOffer
from fusejournal.wire.identity import Identity, load_or_make
from fusejournal.wire.pairing import PAIRING_CONNECTS, PAIRING_LISTENS, parse_code, proof_of
from fusejournal.wire.passes import make_pass
from fusejournal.wire.plain import CONNECTS, LISTENS, proof_of_ends
from tests.golden.files import NOW_NS, golden

_EAST = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgOtXRXbXfc6+3MZPI
rIcjcKgJLu6fUtmDZgqfGR3Si8GhRANCAASk/oLql8OieV9hZVKGM8ovxd5Ce1aH
sGsRTBZm4/Ly7Ct+D63qRpKz7alCZXcqWsrzVcL1E5c6kYDBz4RMzQCa
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBrzCCAVWgAwIBAgIUCEadyOBnBFjerMkzfd+LR6KFjycwCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLZ29sZGVuLXBlZXIwIBcNNzAwMTAxMDAwMDAwWhgPOTk5OTEy
MzEyMzU5NTlaMBYxFDASBgNVBAMMC2dvbGRlbi1wZWVyMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEpP6C6pfDonlfYWVShjPKL8XeQntWh7BrEUwWZuPy8uwrfg+t
6kaSs+2pQmV3KlrK81XC9ROXOpGAwc+ETM0AmqN/MH0wDAYDVR0TAQH/BAIwADAO
BgNVHQ8BAf8EBAMCB4AwHQYDVR0lBBYwFAYIKwYBBQUHAwEGCCsGAQUFBwMCMB0G
A1UdDgQWBBQo/o1EefakSm5QwG1ndWFe/LjSRzAfBgNVHSMEGDAWgBQo/o1Eefak
Sm5QwG1ndWFe/LjSRzAKBggqhkjOPQQDAgNIADBFAiA7BIXP80KkKn//MYasPojZ
98T8GJEGkCW7yl+LXDzv+QIhAJPlU4YwDKp6M9Db/E9iEvxxh9b9d8BYL1k61sEn
7wbY
-----END CERTIFICATE-----
"""
"""A key and its certificate, which are no real node's."""
CODE = "7K3M-Q0ZV-ABCD-EFGH"
OFFERS = (
    PairOffer("n\xf6de", "a certificate\n", bytes(range(32)), b""),
    PairOffer("east", "another certificate\n", bytes(range(32, 64)), b"\xff" * 32),
)
"""The connector's and the listener's."""
LOCAL_KEY = bytes(range(64, 96))
ENDS = {
    "IPv4": (("127.0.0.1", 40_000), ("127.0.0.1", 7710)),
    "IPv4 mapped": (("127.0.0.1", 40_000), ("::ffff:127.0.0.1", 7710, 0, 0)),
    "IPv6": (("::1", 40_000, 0, 0), ("::1", 7710, 0, 0)),
}
"""Addresses of a connector and of a listener, as getsockname(2) has them in Python."""


def node(directory: Path) -> Identity:
    """The golden identity, in *directory*."""
    found = golden("identity-v1")
    return _identity(directory, *("".join(found[name]) for name in ("key.pem", "cert.pem")))


def east(directory: Path) -> Identity:
    """The identity of its peer, in *directory*."""
    key, begin, certificate = _EAST.partition("-----BEGIN CERTIFICATE-----")
    return _identity(directory, key, begin + certificate)


def _identity(directory: Path, key: str, certificate: str) -> Identity:
    directory.mkdir(mode=0o700)
    (directory / "key.pem").write_text(key)
    (directory / "cert.pem").write_text(certificate)
    return load_or_make(directory, "another")


def make_proofs(directory: Path) -> object:
    """A proof of each kind and role."""
    one, other = node(directory / "node"), east(directory / "east")
    with mock.patch("time.time_ns", return_value=NOW_NS):
        passes = {
            "node to east": make_pass(one, other.certificate),
            "east to node": make_pass(other, one.certificate),
        }
    plain, pairing = (CONNECTS, LISTENS), (PAIRING_CONNECTS, PAIRING_LISTENS)
    return {
        "pass": passes,
        "plain": {
            name: {
                role.decode().split()[-1]: proof_of_ends(LOCAL_KEY, role, *ends).hex()
                for role in plain
            }
            for name, ends in ENDS.items()
        },
        "pairing": {
            role.decode(): proof_of(parse_code(CODE), role, *OFFERS).hex() for role in pairing
        },
    }
