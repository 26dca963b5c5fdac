"""``fusejournal restore``: the tree, a directory or a file as it was."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusejournal.cli import text
from fusejournal.cli.interrupts import raise_interrupt
from fusejournal.cli.progress import watched
from fusejournal.cli.seqs import SEQ
from fusejournal.errors import UsageError
from fusejournal.types import Seq, SeqOrPosition

if TYPE_CHECKING:
    from fusejournal.replay.made_aside import Restored
    from fusejournal.versions.manifest import Version

_ONE_OF = "give one of --to-version, --to-seq, --before-seq, --to-time and --to-mark"


@click.command("restore", short_help="Bring back a tree, directory or file as it was.")
@click.argument("volume")
@click.argument("path", required=False)
@click.option("--to-seq", type=SEQ, help="As it was right after this entry.")
@click.option("--before-seq", type=SEQ, help="As it was right before this entry.")
@click.option("--to-time", metavar="TIME", help="As it was at this time.")
@click.option("--to-mark", metavar="NAME", help="As it was at the newest mark of this name.")
@click.option("--to-version", metavar="VERSION", help="As it is in this version (name or seq).")
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The new directory to make, also for a single file, which is put into it; it must not be "
    "there yet.",
)
@click.option("--in-place", is_flag=True, help="On the live volume; shows what, without --apply.")
@click.option("--dry-run", is_flag=True, help="With --in-place: plan only; this is the default.")
@click.option("--apply", "do_apply", is_flag=True, help="With --in-place: do it.")
@click.option("--from-journal", is_flag=True, help="By the journal alone, and no version.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With a store as VOLUME: its recovery key is in FILE (/dev/stdin: the standard input).",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration, with [store], if it is another one than the volume's.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def restore_command(
    volume: str,
    path: str | None,
    to_seq: SeqOrPosition | None,
    before_seq: SeqOrPosition | None,
    to_time: str | None,
    to_mark: str | None,
    to_version: str | None,
    target: Path | None,
    in_place: bool,
    dry_run: bool,
    do_apply: bool,
    from_journal: bool,
    key_file: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Bring back VOLUME's tree, or the file or directory PATH in it, as it was at one moment.

    The tree, or the directory, becomes the new directory DIR. A single file is put into DIR, by its
    own name: a DIR that is named, or ends, as the file does is refused. Nothing is written over.
    PATH is from the volume's root, by the name it had then. Where there is a version before that
    moment, it is made of that and the entries after it, unless --from-journal says otherwise.
    --to-version reads the store of versions alone, not the journal; VOLUME may be a store then, by
    its directory or address, as on a machine that has nothing else. A seq may be EPOCH/SEQ/CHAIN.

    --in-place makes PATH on the live volume what it was: it writes what differs, removes what was
    not there, and changes nothing outside of PATH. It shows what it would do; --apply does it, as
    changes like any other, which mirrors follow and 'undo' takes back. Stopped, it goes on when it
    is given again. Exit code 22: another process changed the same things meanwhile.

    Times: 2026-01-31, "2026-01-31 14:00", 14:00, yesterday, "2 hours ago".

    \b
    Examples:
      fusejournal restore srv-data --to-time "2 hours ago" --target /restore/data
      fusejournal restore srv-data home/anna/thesis.odt --before-seq 4711 --target /restore/thesis
      fusejournal restore srv-data home/anna --to-mark "before the upgrade" --target /restore/anna
      fusejournal restore srv-data --to-version monday --target /restore/data
      fusejournal restore srv-data home/anna --to-time "2 hours ago" --in-place --apply
      fusejournal restore s3://my-bucket/versions --key-file key --to-version monday --target /new
    """
    moment = to_version, to_seq, before_seq, to_time, to_mark
    if in_place:
        if target is not None or from_journal or (dry_run and do_apply):
            raise UsageError("--in-place: not with --target, --from-journal, nor with both others")
        _restore_in_place(volume, path, moment, config, do_apply=do_apply, as_json=as_json)
        return
    if target is None or dry_run or do_apply:
        raise UsageError("give --target DIR, or --in-place, for --dry-run and --apply")
    if to_version is not None:
        if from_journal or any(one is not None for one in moment[1:]):
            raise UsageError("give --to-version alone, or one of the others")
        to = volume, path, to_version, target
        _restore_version(*to, key_file=key_file, config=config, as_json=as_json)
        return
    if all(one is None for one in moment):
        raise UsageError(_ONE_OF)
    from fusejournal.admin.restore_aside import AsideRestore
    from fusejournal.admin.source import open_source

    source = open_source(volume)
    end = source.end_of(to_seq=to_seq, before_seq=before_seq, to_time=to_time, to_mark=to_mark)
    raw = source.path(path) if path else b""
    work = AsideRestore(
        volume, source, raw, end, config=config, waiting=raise_interrupt, from_journal=from_journal
    )
    with watched("restoring", as_json, work.traffic) as progress:
        done = work.run(target, progress, _warn)
    _echo(done, Seq(end - 1), as_json, work.version)


def _warn(words: str) -> None:
    text.echo(f"fusejournal: {words}", err=True)


def _restore_in_place(
    volume: str,
    path: str | None,
    moment: tuple[str | None, SeqOrPosition | None, SeqOrPosition | None, str | None, str | None],
    config: Path | None,
    *,
    do_apply: bool,
    as_json: bool,
) -> None:
    if sum(one is not None for one in moment) != 1:
        raise UsageError(_ONE_OF)
    from fusejournal.admin.restore_in_place import Moment
    from fusejournal.cli.in_place import restore_in_place

    restore_in_place(volume, path, Moment(*moment), config, do_apply=do_apply, as_json=as_json)


def _restore_version(
    volume: str,
    path: str | None,
    wanted: str,
    target: Path,
    *,
    key_file: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    # Only here: the other ways of restoring should not wait for its libraries to load.
    from fusejournal.admin.lone_store import open_versions

    versions = open_versions(volume, key_file, config, raise_interrupt)
    raw = versions.path(path) if path else b""
    with watched("restoring", as_json, versions.traffic) as progress:
        done, version = versions.restore(wanted, raw, target, progress)
    _echo(done, version.seq, as_json, version)


def _echo(done: "Restored", seq: int, as_json: bool, version: "Version | None" = None) -> None:
    if as_json:
        from fusejournal.admin.restore_report import RestoreReport

        text.echo_json(RestoreReport.of_restored(done, seq, version).to_json())
        return
    of = ""
    if version is not None:
        later = text.count(seq - version.seq, "entry", "entries")
        of = f", from version {version.shown_name} and {later} after it"
    text.echo(f"restored {text.count(done.names, 'name')} as of seq {seq} to {done.path}{of}")
