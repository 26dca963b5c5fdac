"""Certificates that were tampered with."""

import ssl

_VERSION = b"\xa0\x03\x02\x01"
_COMMON_NAME = b"\x06\x03\x55\x04\x03"
_STRING = b"\x0c"
_NO_SUCH_TAG = b"\xc1"


def bad_version(certificate: str) -> str:
    """One of a version that X.509 does not have."""
    return _changed(certificate, _VERSION + b"\x02", _VERSION + b"\x05")


def bad_name(certificate: str) -> str:
    """One whose name ``cryptography`` takes, and OpenSSL does not."""
    return _changed(certificate, _COMMON_NAME + _STRING, _COMMON_NAME + _NO_SUCH_TAG)


def _changed(certificate: str, before: bytes, after: bytes) -> str:
    der = ssl.PEM_cert_to_DER_cert(certificate)
    assert before in der
    return ssl.DER_cert_to_PEM_cert(der.replace(before, after, 1))
