"""The console's web application: the page's files, the login, and the API.

Each request passes the same gates, in this order: the host it was sent to, where the console
listens on the loopback alone (a name that an attacker has lead there is refused); for a change,
where the request comes from; the session, and its user's rate and role; for a change, the session's
secret (cross-site request forgery), and its length. It is in the audit before it is done.

Source: OWASP's cheat sheets on sessions, CSRF and HTTP headers; Fetch Metadata (W3C)."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fusejournal.console.agents import Agents, CallFailedError
from fusejournal.console.audit import Audit
from fusejournal.console.openapi import describe_api
from fusejournal.console.routes import ROUTES, ApiRoute
from fusejournal.console.sessions import RateLimit, Sessions, WebSession
from fusejournal.console.users import AccessRole, ConsoleUser, UserBook, parse_access_role
from fusejournal.console.watch import PERIOD_SECONDS, Watch
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import FusejournalError, UsageError, WireError

log = logging.getLogger(__name__)

COOKIE: Final = "fusejournal_session"
CSRF_HEADER: Final = "x-csrf-token"
_BODY_BYTES_MAX: Final = 64 << 10
_AUDIT_LINES: Final = 500
_STREAMS_MAX: Final = 64
_STATUSES: Final = {3: 404, 8: 403, 16: 404, 17: 404, 19: 404, 28: 404, 43: 404}
"""The statuses of agents' errors, by their exit codes; all others are 400."""
_HEARTBEAT_SECONDS: Final = 15.0
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class _RefusedRequestError(Exception):
    """A request that goes no further: *status*, and *words* for people."""

    def __init__(self, status: int, words: str) -> None:
        self.status = status
        super().__init__(words)


@dataclass(frozen=True)
class ConsoleParts:
    """The parts that the application stands on."""

    agents: Agents
    users: UserBook
    audit: Audit
    watch: Watch
    is_tls: bool
    stopping: trio.Event
    """Set when the server is to end: streams end by it, too."""


Handler = Callable[[Request], Awaitable[Response]]


def make_app(parts: ConsoleParts, hosts: Set[str]) -> Any:
    """Returns the ASGI application. *hosts*: the names, with port, by which it may be asked for,
    looked at with each request; empty: any, where TLS says who it is."""
    gates = _Gates(parts)
    own: list[tuple[str, str, Handler]] = [
        ("GET", "/api/session", gates.session),
        ("POST", "/api/login", gates.login),
        ("POST", "/api/password", gates.choose_password),
        ("POST", "/api/logout", gates.logout),
        ("GET", "/api/overview", gates.overview),
        ("GET", "/api/events", gates.events),
        ("POST", "/api/alerts", gates.acknowledge),
        ("GET", "/api/audit", gates.audit),
        ("GET", "/api/openapi.json", gates.openapi),
        ("GET", "/", _page),
    ]
    routes = [Route(path, _answering(handler), methods=[way]) for way, path, handler in own]
    routes += [
        Route(route.path, _answering(gates.asking(route)), methods=[route.method])
        for route in ROUTES
    ]
    static = StaticFiles(directory=static_directory())
    app = Starlette(routes=[*routes, Mount("/static", app=static)])
    return _Secured(app, hosts)


def static_directory() -> Path:
    """Returns where the page's files are."""
    return Path(str(files("fusejournal").joinpath("console/static")))


async def _page(_: Request) -> Response:
    content = await trio.Path(static_directory() / "index.html").read_bytes()
    return Response(content, media_type="text/html; charset=utf-8")


def _answering(handler: Handler) -> Handler:
    """Returns *handler* with its errors as answers."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except _RefusedRequestError as error:
            return _error(error.status, str(error))
        except CallFailedError as error:
            return _error(_STATUSES.get(error.exit_code, 400), str(error))
        except WireError as error:
            return _error(502, str(error))
        except FusejournalError as error:
            return _error(400 if isinstance(error, UsageError) else 500, str(error))
        except OSError as error:
            log.error("%s: %s", error.filename, error.strerror)
            return _error(500, f"the console's disk: {error.strerror}")

    return answer


def _json(value: Any, status: int = 200) -> Response:
    # In ASCII: a name that is no UTF-8 carries its bytes as lone surrogates, as escapes.
    return Response(json.dumps(value).encode(), status, media_type="application/json")


def _error(status: int, words: str) -> Response:
    return _json({"error": words}, status)


class _Secured:
    """Puts the headers on every answer, and refuses names of hosts that are not the console's."""

    def __init__(self, app: Any, hosts: Set[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        is_api = scope["path"].startswith("/api/")

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                added = {**_HEADERS, "cache-control": "no-store" if is_api else "no-cache"}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in added.items()
                        if name.encode() not in there
                    ),
                ]
            await send(message)

        if self._hosts and host not in self._hosts:
            refused = _error(421, "this console is not called so: ask for it by its address")
            await refused(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


class _Gates:
    """The handlers."""

    def __init__(self, parts: ConsoleParts) -> None:
        self._parts = parts
        self._sessions = Sessions()
        self._logins_of_host = RateLimit(10, 6.0)
        self._logins_of_name = RateLimit(10, 30.0)
        self._requests = RateLimit(400, 0.05)
        self._hashing = trio.CapacityLimiter(2)
        self._streams = 0

    # -- who asks ----------------------------------------------------------------------------------

    async def _session(self, request: Request, access: AccessRole) -> WebSession:
        """Returns the session, of a user with *access*. Raises _RefusedRequestError."""
        users = await trio.to_thread.run_sync(self._parts.users.all)
        session = self._sessions.find(request.cookies.get(COOKIE, ""), users, trio.current_time())
        if session is None:
            raise _RefusedRequestError(401, "you are not logged in: log in first")
        if not self._requests.take(session.name, trio.current_time()):
            raise _RefusedRequestError(429, "too many requests: wait a moment")
        if parse_access_role(session.role) < access:
            raise _RefusedRequestError(
                403, f"this is for the role {access.word}: {session.name} is {session.role}"
            )
        return session

    async def _changing(self, request: Request, access: AccessRole) -> WebSession:
        """Returns the session of a request that changes something, and comes from the page. Raises
        _RefusedRequestError."""
        _check_origin(request)
        session = await self._session(request, access)
        if not session.is_csrf(request.headers.get(CSRF_HEADER, "")):
            raise _RefusedRequestError(403, "the request lacks the session's secret: reload")
        return session

    async def session(self, request: Request) -> Response:
        """Tells who is logged in; an empty name: no user."""
        if not request.cookies.get(COOKIE):
            return _json({"name": "", "role": "", "csrf": ""})
        session = await self._session(request, AccessRole.VIEWER)
        return _json(_session_json(session))

    async def login(self, request: Request) -> Response:
        """Logs in."""
        body = await self._strangers_body(request, ("name", "password"))
        user = await trio.to_thread.run_sync(
            self._parts.users.check, body["name"], body["password"], limiter=self._hashing
        )
        if user is None:
            await self._note(body["name"], request, "login refused")
            raise _RefusedRequestError(403, "the name or the password is wrong")
        return await self._begin(request, user, "login")

    async def choose_password(self, request: Request) -> Response:
        """Chooses a password by a one-time code, and logs in."""
        body = await self._strangers_body(request, ("name", "code", "password"))
        user = await trio.to_thread.run_sync(
            self._parts.users.choose_password,
            body["name"], body["code"], body["password"],
            limiter=self._hashing,
        )  # fmt: skip
        if user is None:
            await self._note(body["name"], request, "code refused")
            raise _RefusedRequestError(403, "the name or the code is wrong, or it has expired")
        return await self._begin(request, user, "password chosen")

    async def _strangers_body(self, request: Request, names: tuple[str, ...]) -> dict[str, str]:
        _check_origin(request)
        body = await _body(request)
        texts = {name: str(body.get(name, "")) for name in names}
        now = trio.current_time()
        if not (
            self._logins_of_host.take(_host(request), now)
            and self._logins_of_name.take(texts["name"], now)
        ):
            raise _RefusedRequestError(429, "too many tries: wait some minutes")
        return texts

    async def _begin(self, request: Request, user: ConsoleUser, what: str) -> Response:
        await self._note(user.name, request, what)
        token, session = self._sessions.begin(user, trio.current_time())
        response = _json(_session_json(session))
        response.set_cookie(
            COOKIE, token, httponly=True, samesite="strict", secure=self._parts.is_tls, path="/"
        )
        return response

    async def logout(self, request: Request) -> Response:
        """Logs out."""
        session = await self._changing(request, AccessRole.VIEWER)
        self._sessions.end(request.cookies.get(COOKIE, ""))
        await self._note(session.name, request, "logout")
        response = _json({})
        response.delete_cookie(COOKIE, path="/")
        return response

    # -- the console's own -------------------------------------------------------------------------

    async def overview(self, request: Request) -> Response:
        """All agents and volumes."""
        await self._session(request, AccessRole.VIEWER)
        return _json(await self._parts.watch.overview())

    async def events(self, request: Request) -> Response:
        """The overview whenever it changes, as server-sent events."""
        await self._session(request, AccessRole.VIEWER)
        if self._streams >= _STREAMS_MAX:
            raise _RefusedRequestError(429, "too many pages are open")
        return StreamingResponse(self._watch(request), media_type="text/event-stream")

    async def _watch(self, request: Request) -> AsyncIterator[bytes]:
        """Yields events until the session or the server ends."""
        last, said = "", trio.current_time()
        self._streams += 1
        try:
            while not self._parts.stopping.is_set():
                try:
                    await self._session(request, AccessRole.VIEWER)
                    overview = await self._parts.watch.overview()
                except (_RefusedRequestError, FusejournalError):
                    yield b"event: over\ndata: {}\n\n"
                    return
                content = json.dumps(overview)
                if content != last:
                    last, said = content, trio.current_time()
                    yield b"event: overview\ndata: " + content.encode() + b"\n\n"
                elif trio.current_time() > said + _HEARTBEAT_SECONDS:
                    said = trio.current_time()
                    yield b": still here\n\n"
                with trio.move_on_after(PERIOD_SECONDS):
                    await self._parts.stopping.wait()
        finally:
            self._streams -= 1

    async def acknowledge(self, request: Request) -> Response:
        """Acknowledges an alert."""
        session = await self._changing(request, AccessRole.OPERATOR)
        key = str((await _body(request)).get("key", ""))
        await self._note(session.name, request, "acknowledge", key=key)
        await trio.to_thread.run_sync(self._parts.watch.alerts.acknowledge, key, session.name)
        return _json({"key": key})

    async def audit(self, request: Request) -> Response:
        """The newest lines of the audit."""
        await self._session(request, AccessRole.ADMIN)
        lines = await trio.to_thread.run_sync(self._parts.audit.newest, _AUDIT_LINES)
        return _json({"lines": lines})

    async def openapi(self, request: Request) -> Response:
        """The description of the API."""
        await self._session(request, AccessRole.VIEWER)
        return _json(describe_api())

    async def _note(self, user: str, request: Request, what: str, **details: Any) -> None:
        note = self._parts.audit.note
        host = _host(request)
        await trio.to_thread.run_sync(lambda: note(user, host, what, **details))

    # -- the agents' -------------------------------------------------------------------------------

    def asking(self, route: ApiRoute) -> Handler:
        """Returns the handler of a route that goes to an agent."""
        if route.method == "POST":
            return lambda request: self._change(route, request)
        if route.call in ("content", "version-content"):
            return lambda request: self._download(route, request)
        return lambda request: self._ask(route, request)

    async def _ask(self, route: ApiRoute, request: Request) -> Response:
        fields = _query_fields(route, request)
        has_data = route.call == "entry" and fields.get("data")
        session = await self._session(request, AccessRole.OPERATOR if has_data else route.access)
        if has_data:
            await self._note(session.name, request, "entry data", **_where(request))
        link = await self._parts.agents.link(request.path_params["agent"])
        return _json(await link.call(route.call, **fields))

    async def _change(self, route: ApiRoute, request: Request) -> Response:
        session = await self._changing(request, route.access)
        body = await _body(request)
        known = {one.name for one in route.parameters}
        if unknown := sorted(set(body) - known):
            raise _RefusedRequestError(400, f"{unknown[0]!r:.80} is not known here")
        fields = {**body, **_path_fields(request)}
        link = await self._parts.agents.link(request.path_params["agent"])
        await self._note(session.name, request, route.call, **{**_where(request), **body})
        fields |= {"user": session.name, "access": session.role}
        return _json(await link.call(route.call, **fields))

    async def _download(self, route: ApiRoute, request: Request) -> Response:
        fields = _query_fields(route, request)
        session = await self._session(request, route.access)
        await self._note(session.name, request, "download", **_where(request), **fields)
        link = await self._parts.agents.link(request.path_params["agent"])
        parts = link.parts(route.call, **fields)
        # The first part tells an error while the answer can still be one.
        first = await anext(parts, b"")

        async def pieces() -> AsyncIterator[bytes]:
            async with aclosing(parts):
                yield first
                async for part in parts:
                    yield part

        # Never as what it may say it is: the page must not become what users wrote.
        headers = {"content-disposition": "attachment", "content-security-policy": "sandbox"}
        return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)


def _session_json(session: WebSession) -> dict[str, str]:
    return {"name": session.name, "role": session.role, "csrf": session.csrf}


def _host(request: Request) -> str:
    return str(request.client.host) if request.client is not None else "?"


def _check_origin(request: Request) -> None:
    """Raises _RefusedRequestError for a request that another site's page sent."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if site != "same-origin" or not is_own:
        raise _RefusedRequestError(403, "the request comes from another site")
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise _RefusedRequestError(415, "a change is asked for in JSON")


async def _body(request: Request) -> dict[str, Any]:
    too_long = _RefusedRequestError(413, f"more than {_BODY_BYTES_MAX} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > _BODY_BYTES_MAX:
        raise too_long
    content = b""
    async with aclosing(request.stream()) as parts:
        async for part in parts:
            content += part
            if len(content) > _BODY_BYTES_MAX:
                raise too_long
    try:
        body = json.loads(content or b"{}")
    except UNREADABLE_JSON:
        raise _RefusedRequestError(400, "no JSON") from None
    if not isinstance(body, dict):
        raise _RefusedRequestError(400, "no JSON object")
    return body


def _query_fields(route: ApiRoute, request: Request) -> dict[str, Any]:
    """Returns the fields of a GET: only those that the route has."""
    fields: dict[str, Any] = {}
    # Bytes that are no UTF-8 stay what they are, as in all names.
    query = parse_qs(request.scope["query_string"].decode("latin-1"), errors="surrogateescape")
    for parameter in route.parameters:
        values = query.get(parameter.name)
        if values:
            fields[parameter.name] = values if parameter.kind == "array" else values[-1]
    return {**fields, **_path_fields(request)}


def _path_fields(request: Request) -> dict[str, Any]:
    found: Mapping[str, str] = request.path_params
    return {name: value for name, value in found.items() if name != "agent"}


def _where(request: Request) -> dict[str, Any]:
    return {f"in_{name}": value for name, value in request.path_params.items()}
