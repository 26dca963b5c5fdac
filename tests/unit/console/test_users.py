"""Users, sessions, rates and the audit."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusejournal.console.agents import AgentBook, KnownAgent
from fusejournal.console.audit import Audit
from fusejournal.console.sessions import RateLimit, Sessions
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import AccessRole, UserBook, parse_access_role
from fusejournal.errors import FusejournalError, UsageError
from tests.support.consoles import PASSWORD


@pytest.fixture
def book(tmp_path: Path) -> UserBook:
    return UserBook(tmp_path / "users.json")


def test_a_code_is_good_once(book: UserBook) -> None:
    code = book.add("anna", AccessRole.OPERATOR).code
    assert book.check("anna", "") is None
    assert book.choose_password("anna", "0000-0000-0000-0000", PASSWORD) is None
    assert book.choose_password("bert", code, PASSWORD) is None
    with pytest.raises(UsageError, match="12 to 256 characters"):
        book.choose_password("anna", code, "short")
    chosen = book.choose_password("anna", code.lower(), PASSWORD)
    assert chosen is not None
    assert (chosen.access, chosen.code) == (AccessRole.OPERATOR, "")
    assert book.choose_password("anna", code, PASSWORD) is None
    assert book.check("anna", PASSWORD) == chosen
    assert book.check("anna", PASSWORD + "x") is None
    assert book.check("bert", PASSWORD) is None


def test_a_code_ends(book: UserBook, monkeypatch: pytest.MonkeyPatch) -> None:
    code = book.add("anna", AccessRole.VIEWER).code
    late = time.time() + 25 * 3600
    monkeypatch.setattr("fusejournal.console.users.time.time", lambda: late)
    assert book.choose_password("anna", code, PASSWORD) is None


def test_another_process_changes_users(book: UserBook, tmp_path: Path) -> None:
    code = book.add("anna", AccessRole.OPERATOR).code
    book.choose_password("anna", code, PASSWORD)
    other = UserBook(tmp_path / "users.json")
    other.add("anna", AccessRole.VIEWER)  # keeps the password
    found = book.check("anna", PASSWORD)
    assert found is not None
    assert found.role == "viewer"
    other.remove("anna")
    assert book.all() == {}
    with pytest.raises(UsageError, match="no user"):
        book.remove("anna")
    with pytest.raises(UsageError, match="no role"):
        parse_access_role("god")
    with pytest.raises(UsageError, match="name"):
        book.add("../x", AccessRole.VIEWER)
    (tmp_path / "users.json").write_text("{")
    with pytest.raises(FusejournalError, match="cannot be read"):
        book.all()
    assert PASSWORD not in (tmp_path / "users.json").read_text()


def test_a_new_code_changes_no_role(book: UserBook) -> None:
    assert book.add("otto").role == "viewer"
    anna = book.add("anna", AccessRole.ADMIN)
    assert anna.previous_role is None
    assert book.choose_password("anna", anna.code, PASSWORD) is not None
    again = book.add("anna")
    assert (again.role, again.previous_role) == ("admin", "admin")
    for role in (AccessRole.VIEWER, AccessRole.OPERATOR):
        with pytest.raises(UsageError, match="the last admin"):
            book.add("anna", role)
    assert book.check("anna", PASSWORD) == book.all()["anna"]
    book.add("otto", AccessRole.ADMIN)
    changed = book.add("anna", AccessRole.OPERATOR)
    assert (changed.role, changed.previous_role) == ("operator", "admin")


def test_changes_at_one_time_are_all_kept(tmp_path: Path) -> None:
    """Each thread has a book of its own, as a command has that runs beside the console."""

    def change(writer: int) -> None:
        for number in range(10):
            UserBook(tmp_path / "users.json").add(f"user-{writer}-{number}")
            TokenBook(tmp_path / "tokens.json").create(
                f"token-{writer}-{number}", AccessRole.VIEWER, 1, ()
            )
            agent = KnownAgent(f"agent-{writer}-{number}", "127.0.0.1:1", "")
            AgentBook(tmp_path / "agents.json").put(agent)
        UserBook(tmp_path / "users.json").remove(f"user-{writer}-0")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    assert len(UserBook(tmp_path / "users.json").all()) == 36
    assert len(TokenBook(tmp_path / "tokens.json").all()) == 40
    assert len(AgentBook(tmp_path / "agents.json").all()) == 40


def test_of_two_who_use_a_code_one_chooses_the_password(tmp_path: Path) -> None:
    code = UserBook(tmp_path / "users.json").add("anna").code

    def choose(number: int) -> bool:
        book = UserBook(tmp_path / "users.json")
        return book.choose_password("anna", code, f"{PASSWORD} {number}") is not None

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(choose, range(4))) == [False, False, False, True]


def test_sessions_end(book: UserBook) -> None:
    book.add("anna", AccessRole.VIEWER)
    users, sessions = book.all(), Sessions()
    token, session = sessions.begin(users["anna"], 0.0)
    assert sessions.find(token, users, 3000.0) == session
    assert sessions.find("other", users, 0.0) is None
    assert sessions.find(token, users, 6000.0, is_poll=True) == session
    assert (session.is_csrf(session.csrf), session.is_csrf("")) == (True, False)
    assert sessions.find(token, users, 3000.0 + 3601) is None  # idle
    token, _ = sessions.begin(users["anna"], 0.0)
    for hour in range(14):
        last = sessions.find(token, users, hour * 3500.0)
    assert last is None  # twelve hours
    token, _ = sessions.begin(users["anna"], 0.0)
    assert sessions.find(token, {}, 1.0) is None  # removed
    token, _ = sessions.begin(users["anna"], 0.0)
    sessions.end(token)
    assert sessions.find(token, users, 1.0) is None
    token, _ = sessions.begin(users["anna"], 0.0)
    book.add("anna", AccessRole.ADMIN)
    assert sessions.find(token, book.all(), 1.0) is None  # another role
    token, _ = sessions.begin(book.all()["anna"], 0.0)
    changed = book.choose_password("anna", book.add("anna", AccessRole.ADMIN).code, PASSWORD)
    assert changed is not None
    assert sessions.find(token, book.all(), 1.0) is None  # another password
    token, _ = sessions.begin(changed, 0.0)
    assert sessions.find(token, book.all(), 1.0) is not None


def test_rates() -> None:
    rate = RateLimit(3, 10.0)
    assert [rate.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert rate.take("b", 0.0)
    assert (rate.take("a", 9.0), rate.take("a", 10.0), rate.take("a", 10.0)) == (False, True, False)
    assert rate.take("a", 1000.0)


def test_the_audit_is_read_backwards(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    assert audit.newest(5) == []
    for number in range(3):
        audit.note("anna\n", "127.0.0.1", "login", number=number)
    with open(tmp_path / "audit.jsonl", "ab") as file:
        file.write(b'{"half')
    assert [one["number"] for one in audit.newest(2)] == [2, 1]
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["user"] == "anna\n"
