"""TLS contexts, each made once: making one reads files and parses keys, which takes longer than a
handshake, and strangers decide how often there is one. They are made anew when a peer's certificate
comes or goes. No session of one connection is ever resumed in another (connection.py)."""

import ssl
from functools import lru_cache
from typing import Final

from fusejournal.wire.connection import tls_context
from fusejournal.wire.identity import Identity, trust

_KEPT: Final = 128


@lru_cache(_KEPT)
def context_for_pairing(purpose: ssl.Purpose, identity: Identity) -> ssl.SSLContext:
    """Returns the context for a connection with a node that is not known yet. Raises
    FusejournalError when the identity's files are gone."""
    return tls_context(purpose, identity, is_verified=False)


@lru_cache(_KEPT)
def context_for(
    purpose: ssl.Purpose, identity: Identity, certificates: tuple[str, ...]
) -> tuple[ssl.SSLContext, frozenset[str]]:
    """Returns the context for a connection with a node that has one of *certificates* (PEM), and
    those of them that TLS cannot use. Raises FusejournalError when the identity's files are
    gone."""
    context = tls_context(purpose, identity, is_verified=True)
    unusable = frozenset(one for one in certificates if not trust(context, one))
    return context, unusable
