"""An office at work: users with documents, mail boxes, builds, a database and the image of a
virtual machine, each changed as such files are. The same seed does the same."""

import os
import random
from pathlib import Path

_WORDS = b"some words of a text that compresses as texts do "
_PAGE = 8 << 10
_BLOCK = 64 << 10
_SOURCES = 60
"""Sources, and objects made of them, of a build."""


class Office:
    """The files below *root*. At *size* 1 there are some 8,000 of them, of 300 MB."""

    def __init__(self, root: Path, size: float, seed: int = 1) -> None:
        self._root = root
        self._random = random.Random(seed)
        self.users = max(2, int(30 * size))
        self._documents: list[Path] = []
        for user in range(self.users):
            for number in range(200):
                path = root / f"home/user{user}/d{number // 20}/document{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._text(60))
                self._documents.append(path)
            self._make_mail(user)
            self._build(user)
        self._database = root / "srv/database"
        self._database.parent.mkdir()
        with open(self._database, "wb") as file:
            for _ in range(max(8, int(96 * size))):
                file.write((self._random.randbytes(300) + self._text(8)).ljust(_PAGE) * 128)
        self._image = root / "srv/machine.img"
        with open(self._image, "wb") as file:
            file.truncate(int(512 * size) << 20)
            for _ in range(int(2000 * size)):
                self._write_block(file.fileno())
        self.one_file = self._documents[len(self._documents) // 2].relative_to(root)

    def _text(self, words_max: int) -> bytes:
        count = self._random.randrange(1, words_max)
        return self._random.randbytes(300) + _WORDS * count * 3

    def work(self) -> None:
        """Half a day of everybody's work: about a percent of all bytes is written."""
        choice = self._random
        for _ in range(self.users * 4):
            self._edit()
        for user in choice.sample(range(self.users), max(1, self.users // 3)):
            self._receive_mail(user)
        self._build(choice.randrange(self.users))
        with open(self._database, "r+b") as file:
            pages = self._database.stat().st_size // _PAGE
            for _ in range(pages // 300):
                os.pwrite(
                    file.fileno(), choice.randbytes(_PAGE // 4), choice.randrange(pages) * _PAGE
                )
        with open(self._image, "r+b") as file:
            for _ in range(max(2, self._image.stat().st_size // _BLOCK // 600)):
                self._write_block(file.fileno())

    def _edit(self) -> None:
        """A document is saved, as editors do it: a new file takes the old one's name; or it is
        made, renamed or deleted."""
        choice = self._random
        at = choice.randrange(len(self._documents))
        path = self._documents[at]
        match choice.randrange(10):
            case 0:
                new = path.with_name(f"new{choice.getrandbits(60)}.txt")
                new.write_bytes(self._text(60))
                self._documents.append(new)
            case 1:
                self._documents[at] = path.rename(
                    path.with_name(f"moved{choice.getrandbits(60)}.txt")
                )
            case 2 if path != self._root / self.one_file:
                path.unlink()
                self._documents[at] = self._documents[-1]
                self._documents.pop()
            case _:
                saved = path.with_name(f".{path.name}.swp")
                saved.write_bytes(path.read_bytes()[:-50] + self._text(4))
                saved.rename(path)

    def _make_mail(self, user: int) -> None:
        box = self._root / f"home/user{user}/mail"
        box.mkdir()
        with open(box / "inbox", "wb") as file:
            for _ in range(60):
                file.write(b"From a user\n" + self._text(400))

    def _receive_mail(self, user: int) -> None:
        """Some letters come; now and then a third of the box is thrown away."""
        inbox = self._root / f"home/user{user}/mail/inbox"
        if self._random.randrange(8) == 0:
            content = inbox.read_bytes()
            inbox.write_bytes(content[len(content) // 3 :])
        with open(inbox, "ab") as file:
            for _ in range(self._random.randrange(1, 6)):
                file.write(b"From a user\n" + self._text(400))

    def _build(self, user: int) -> None:
        """Sources are compiled anew, and the objects of before are gone."""
        build = self._root / f"home/user{user}/project/build"
        if build.exists():
            for path in build.iterdir():
                path.unlink()
            build.rmdir()
        build.mkdir(parents=True)
        for number in range(_SOURCES):
            content = random.Random(user * 1000 + number).randbytes(4000) * 3
            (build / f"object{number}.o").write_bytes(content + self._random.randbytes(300))
        (build / "program").write_bytes(self._random.randbytes(200_000))

    def _write_block(self, fd: int) -> None:
        blocks = os.fstat(fd).st_size // _BLOCK
        # A guest writes mostly where it wrote before.
        at = int(blocks * self._random.random() ** 3)
        os.pwrite(fd, self._random.randbytes(_BLOCK // 2) + bytes(_BLOCK // 2), at * _BLOCK)
