"""Advice about a peer that is not shipped to, in words. Pure."""

from collections.abc import Mapping
from typing import Final

from fusejournal.errors import PeerLostError, PeerMistakenError, PeerRefusedError
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError

COPY_ADVICE: Final = (
    "'fusejournal peer resume' lets it try again, while the journal still has what it lacks; else, "
    "there, 'fusejournal umount', 'fusejournal rejoin' and 'fusejournal mount' copy what differs"
)
FULL: Final = "make space there: it goes on by itself"
MIRROR_FAILED: Final = "see the mirror's own status and log"
_VOTE_GIVEN: Final = (
    "it has given its vote for a reign that no node is known to have begun: if another is to be "
    "promoted, give 'fusejournal promote' there again; to go on with this one instead, overrule = "
    '"{}" under [replication], and mount it again'
)
_BY_CODE: Final[Mapping[RefusalCode, str]] = {
    RefusalCode.VERSION: "upgrade the node that it names",
    RefusalCode.VOLUME: "this is another volume's mirror: check its address",
    RefusalCode.UNINITIALIZED: "it has nothing yet that it could ship on",
    RefusalCode.ROLE: "if it was promoted in place of this one, see there if this node is paused "
    "('fusejournal peer list', 'fusejournal peer resume'); else check its address",
    RefusalCode.DIRECTION: "on it: 'fusejournal peer remove VOLUME NAME', with the name that it "
    "has for this node; then 'fusejournal pair' on it, and here what it shows",
    RefusalCode.FENCED: "another node has become primary: stop this one, or bring it back as a "
    "mirror; or, if that reign is none, overrule it: 'overrule' under [replication]",
    RefusalCode.FULL: FULL,
    RefusalCode.SERVED: "nothing: the primary itself ships to it",
    RefusalCode.BUSY: "another node ships to it: check who is its primary",
    RefusalCode.COPY: COPY_ADVICE,
    RefusalCode.INSTANCE: "stop the one that is a copy, and give it a state of its own",
    RefusalCode.FAILED: "see that node's own status and log: its disk has failed",
    RefusalCode.MEMBERS: "see that node's own log, and which program it runs: it counts for "
    "nothing here",
    RefusalCode.TWICE: "remove one of the two names: 'fusejournal peer remove'",
}


def advice_on(error: BaseException) -> str | None:
    """Returns what to do where a session ended with *error*, or could not be had."""
    if isinstance(error, RefusedError):
        if (
            error.code is RefusalCode.FENCED
            and error.claim is not None
            and not error.claim.has_begun
        ):
            return _VOTE_GIVEN.format(error.claim.reign)
        return _BY_CODE.get(error.code)
    if isinstance(error, PeerMistakenError):
        return "check its address; if it was made anew: 'fusejournal peer remove', and pair again"
    if isinstance(error, PeerRefusedError):
        return "'fusejournal pair' on it, then here what it shows"
    if isinstance(error, PeerLostError):
        return "is it mounted? check its address, and the firewalls on the way"
    return None
