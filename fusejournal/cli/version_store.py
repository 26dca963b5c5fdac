"""``fusejournal version store`` and ``version key``: where versions are kept, and the key of an
encrypted store."""

import sys
from pathlib import Path

import click

from fusejournal.admin.version_store import StoreKeyId
from fusejournal.admin.versions import VolumeVersions
from fusejournal.cli import text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.progress import watched
from fusejournal.versions.keys import parse_key, read_key_file, write_key_file

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON.")


@click.group(short_help="Where versions are kept.")
def store() -> None:
    """Set and show where a volume's versions are kept: a directory, best on another disk, or a
    bucket at a service. Several volumes, and a primary and its mirrors, may share one.

    A service's credentials, endpoint and the like are looked for in [store.options] of the
    volume's configuration, in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_ENDPOINT_URL, AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME,
    AZURE_STORAGE_ACCOUNT_KEY), and in the files where the service's own programs keep them
    (~/.aws/credentials). They are never given on the command line.

    \b
    Examples:
      fusejournal version store init srv-data --store /backup/versions
      fusejournal version store init srv-data --store s3://my-bucket/versions
      fusejournal version store show srv-data
    """


@store.command(short_help="Say where versions are kept.")
@click.argument("volume")
@click.option(
    "--store",
    "where",
    required=True,
    metavar="DIR|s3://BUCKET/PREFIX",
    help="A directory, which is made; or s3://, gs:// or az:// with a bucket that is there. It "
    "may hold versions already.",
)
@click.option(
    "--encrypt/--no-encrypt",
    default=None,
    help="Whether what is put there is encrypted. It is asked, at a terminal; "
    "otherwise a bucket is, and a directory is not.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The recovery key of a store that is encrypted already is in FILE (/dev/stdin: the "
    "standard input).",
)
@_AS_JSON
def init(
    volume: str, where: str, encrypt: bool | None, key_file: Path | None, as_json: bool
) -> None:
    """Keep VOLUME's versions in a directory, for root alone, or in a bucket. It is tried whether
    it keeps what a store must: an object is made once only, read back, listed and removed.

    The recovery key of an encrypted store is shown once. Keep it apart: anyone who has it can read
    all versions in the store, and without it and this machine no one can.

    \b
    Examples:
      fusejournal version store init srv-data --store /backup/versions
      fusejournal version store init srv-data --store s3://my-bucket/versions
      fusejournal version store init srv-two --store s3://my-bucket/versions --key-file key
    """
    known = read_key_file(key_file, private=False) if key_file is not None else None
    kept = VolumeVersions(volume, raise_interrupt).kept
    found = kept.init(where, encrypt=encrypt, ask=_ask, key=known)
    place, new_key = found
    if as_json:
        text.echo_json(found.reply().to_json())
        return
    sealed = f", encrypted with key {place.key_id}" if place.key_id else ""
    text.echo(f"versions of {volume} are kept in {place.store} (store {place.id}){sealed}")
    if new_key is not None:
        text.echo(f"recovery key: {new_key.text}")
        text.echo("keep it apart from this machine: without both, all versions there are lost")


def _ask(usual: bool) -> bool:
    """Returns whether a store that is about to be made is to be encrypted."""
    if not _somebody_is_there():
        return usual
    return click.confirm("encrypt what is kept there?", default=usual, err=True)


def _somebody_is_there() -> bool:
    """Returns True if there is a terminal to ask at."""
    return sys.stdin.isatty()


@store.command("show", short_help="Where versions are kept, and how many objects that has.")
@click.argument("volume")
@_AS_JSON
def show_store(volume: str, as_json: bool) -> None:
    """Show where VOLUME's versions are kept, and how many objects of each kind the store has.

    \b
    Examples:
      fusejournal version store show srv-data
    """
    _echo_store(VolumeVersions(volume, raise_interrupt), as_json, checked=False)


@store.command(short_help="Try whether the store can be relied on.")
@click.argument("volume")
@click.option("--repair", is_flag=True, help="Make a spoilt index anew, of the packs.")
@_AS_JSON
def check(volume: str, repair: bool, as_json: bool) -> None:
    """Try whether the store of VOLUME's versions keeps what it must, check its indexes and the
    objects of versions, and that each pack that is told of is there. What is in the packs, 'version
    verify' checks.

    \b
    Examples:
      fusejournal version store check srv-data
      fusejournal version store check srv-data --repair
    """
    versions = VolumeVersions(volume, raise_interrupt)
    if repair:
        with watched("reading packs", as_json) as progress:
            done = versions.repair_store(progress)
        for fault in done.lost:
            text.echo(f"fusejournal: {fault}: what only it has is lost", err=True)
        if done.indexes and not as_json:
            text.echo(
                f"made {text.count(len(done.indexes), 'index', 'indexes')} anew: "
                f"{text.count(done.blocks, 'block')} in {text.count(done.packs, 'pack')}"
            )
    _echo_store(versions, as_json, checked=True)


def _echo_store(versions: VolumeVersions, as_json: bool, *, checked: bool) -> None:
    facts = versions.check_store() if checked else versions.store_facts()
    if as_json:
        text.echo_json(facts.to_json())
        return
    counts = ", ".join(f"{count:,} {kind}" for kind, count in facts.objects.items())
    place = facts.place
    sealed = f", encrypted with key {place.key_id}" if place.key_id else ""
    word = " is as it must be" if checked else ""
    text.echo(f"{place.store} (store {place.id}{sealed}){word}: {counts}")


@click.group(short_help="The key of an encrypted store of versions.")
def key() -> None:
    """Show, bring out and bring in the key that a volume's versions are encrypted with. It lies in
    the volume's state directory, for root alone; its text form is the recovery key.

    \b
    Examples:
      fusejournal version key show srv-data
      fusejournal version key export srv-data --output /media/usb/key
      fusejournal version key import srv-data /media/usb/key
    """


@key.command("show", short_help="Which key it is.")
@click.argument("volume")
@_AS_JSON
def show_key(volume: str, as_json: bool) -> None:
    """Show the id of VOLUME's key, which is no secret.

    \b
    Examples:
      fusejournal version key show srv-data
    """
    found = VolumeVersions(volume, raise_interrupt).kept.needed_key()
    if as_json:
        text.echo_json(StoreKeyId(key_id=found.id).to_json())
    else:
        text.echo(f"key {found.id}; 'fusejournal version key export {volume}' gives it away")


@key.command("export", short_help="Print the recovery key.")
@click.argument("volume")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The new file, for its owner alone, that it is put into.",
)
def export_key(volume: str, output: Path | None) -> None:
    """Print VOLUME's recovery key, or put it into a file. Anyone who has it can read all versions
    in the store.

    \b
    Examples:
      fusejournal version key export srv-data
      fusejournal version key export srv-data --output /media/usb/key
    """
    found = VolumeVersions(volume, raise_interrupt).kept.needed_key()
    if output is None:
        text.echo(found.text)
        return
    write_key_file(output, found)
    text.echo(f"put the recovery key with id {found.id} into {output}")


@key.command("import", short_help="Take a recovery key.")
@click.argument("volume")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def import_key(volume: str, file: Path | None) -> None:
    """Have the recovery key in FILE be VOLUME's key, as on a mirror, or where the state directory
    was lost; without FILE it is asked for, or read from the standard input. It must be that of
    the volume's store.

    \b
    Examples:
      fusejournal version key import srv-data /media/usb/key
      fusejournal version key export srv-data | ssh mirror fusejournal version key import srv-data
    """
    kept = VolumeVersions(volume, raise_interrupt).kept
    if file is not None:
        found = read_key_file(file, private=False)
    elif _somebody_is_there():
        found = parse_key("what was typed", click.prompt("recovery key", hide_input=True, err=True))
    else:
        found = parse_key("standard input", sys.stdin.read())
    kept.import_key(found)
    text.echo(f"{volume} has key {found.id}")
