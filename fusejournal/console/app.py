"""The console's web application: the page's files, the login, and the API.

Each request passes the same gates, in this order: the host it was sent to, where the console
listens on the loopback alone (a name that an attacker has lead there is refused); for a change,
where the request comes from; the session or the token, and its rate, role and volumes; for a
browser's change, the session's secret (gates.py), and its length. It is in the audit before it is
done.

Source: OWASP's cheat sheet on HTTP headers; RFC 6797."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fusejournal.console.agents import AgentLink, Agents, CallFailedError
from fusejournal.console.alert_metrics import METRICS_TYPE, alert_metrics
from fusejournal.console.audit import Audit
from fusejournal.console.channels import DeliveryError
from fusejournal.console.gates import Asker, Gates
from fusejournal.console.openapi import describe_api
from fusejournal.console.routes import ROUTES, ApiRoute
from fusejournal.console.token_sight import has_agent, seen_by_token
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import AccessRole, UserBook
from fusejournal.console.viewer_sight import seen_by_viewer
from fusejournal.console.watch import PERIOD_SECONDS, Watch
from fusejournal.console.web_requests import (
    RefusedRequestError,
    body_of,
    error_answer,
    json_answer,
    path_fields,
    query_fields,
    where_of,
    without_secrets,
)
from fusejournal.errors import FusejournalError, UsageError, WireError

log = logging.getLogger(__name__)

_AUDIT_LINES: Final = 500
_STREAMS_MAX: Final = 64
_STATUSES: Final = {3: 404, 8: 403, 16: 404, 17: 404, 19: 404, 28: 404, 43: 404, 51: 409}
"""The statuses of agents' errors, by their exit codes; all others are 400."""
_DOWNLOADS: Final = ("content", "archive", "version-content", "version-archive")
_HEARTBEAT_SECONDS: Final = 15.0
_TAKE_SECONDS: Final = 120.0
"""The time in which a client has to take a part of a download: then its place is another's."""
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
_TLS_HEADERS: Final = {"strict-transport-security": "max-age=31536000"}
"""(A browser passes over it where it does not trust the certificate by itself.)"""


@dataclass(frozen=True)
class ConsoleParts:
    """The parts that the application stands on."""

    agents: Agents
    users: UserBook
    tokens: TokenBook
    audit: Audit
    watch: Watch
    is_tls: bool
    stopping: trio.Event
    """Set when the server is to end: streams end by it, too."""


RequestHandler = Callable[[Request], Awaitable[Response]]


def make_app(parts: ConsoleParts, hosts: Set[str]) -> Any:
    """Returns the ASGI application. *hosts*: the names, with port, by which it may be asked for,
    looked at with each request; empty: any, where TLS says who it is."""
    gates = Gates(parts.users, parts.tokens, parts.audit, is_tls=parts.is_tls)
    handlers = _Handlers(parts, gates)
    own: list[tuple[str, str, RequestHandler]] = [
        ("GET", "/api/session", gates.session),
        ("POST", "/api/login", gates.login),
        ("POST", "/api/password", gates.choose_password),
        ("POST", "/api/logout", gates.logout),
        ("GET", "/api/overview", handlers.overview),
        ("GET", "/api/events", handlers.events),
        ("GET", "/api/metrics", handlers.metrics),
        ("POST", "/api/alerts", handlers.act_on_alert),
        ("POST", "/api/channels", handlers.try_channel),
        ("GET", "/api/audit", handlers.audit),
        ("GET", "/api/openapi.json", handlers.openapi),
        ("GET", "/", _page),
    ]
    routes = [Route(path, _answering(gates, handler), methods=[way]) for way, path, handler in own]
    routes += [
        Route(route.path, _answering(gates, handlers.asking(route)), methods=[route.method])
        for route in ROUTES
    ]
    static = StaticFiles(directory=static_directory())
    app = Starlette(routes=[*routes, Mount("/static", app=static)])
    return _Secured(app, hosts, _HEADERS | (_TLS_HEADERS if parts.is_tls else {}))


def static_directory() -> Path:
    """Returns where the page's files are."""
    return Path(str(files("fusejournal").joinpath("console/static")))


async def _page(_: Request) -> Response:
    content = await trio.Path(static_directory() / "index.html").read_bytes()
    return Response(content, media_type="text/html; charset=utf-8")


def _answering(gates: Gates, handler: RequestHandler) -> RequestHandler:
    """Returns *handler* with its errors as answers; *gates* has what was forbidden audited."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except RefusedRequestError as error:
            return await gates.refuse(request, error.status, str(error))
        except CallFailedError as error:
            status = _STATUSES.get(error.exit_code, 400)
            return await gates.refuse(request, status, str(error))
        except WireError as error:
            return error_answer(502, str(error))
        except FusejournalError as error:
            return error_answer(400 if isinstance(error, UsageError) else 500, str(error))
        except OSError as error:
            log.error("%s: %s", error.filename, error.strerror)
            return error_answer(500, f"the console's disk: {error.strerror}")

    return answer


class DownloadResponse:
    """The answer with the bytes of a download. It ends, and is not whole, where the client takes
    nothing for long."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._pieces = pieces
        # Never as what it may say it is: the page must not become what users wrote.
        headers = {"content-disposition": "attachment", "content-security-policy": "sandbox"}
        self._answer = StreamingResponse(
            pieces, media_type="application/octet-stream", headers=headers
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the answer. Cancelled, it closes what the bytes come from."""

        async def send_in_time(message: Any) -> None:
            with trio.fail_after(_TAKE_SECONDS):
                await send(message)

        async with aclosing(self._pieces):
            try:
                await self._answer(scope, receive, send_in_time)
            except trio.TooSlowError:
                log.info("a download was ended: its client took nothing for %g s", _TAKE_SECONDS)


class _Secured:
    """Puts the headers on every answer, and refuses names of hosts that are not the console's."""

    def __init__(self, app: Any, hosts: Set[str], headers: Mapping[str, str]) -> None:
        self._app = app
        self._hosts = hosts
        self._headers = headers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        is_api = scope["path"].startswith("/api/")

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                added = {**self._headers, "cache-control": "no-store" if is_api else "no-cache"}
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
            refused = error_answer(421, "this console is not called so: ask for it by its address")
            await refused(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


class _Handlers:
    """The handlers."""

    def __init__(self, parts: ConsoleParts, gates: Gates) -> None:
        self._parts = parts
        self._gates = gates
        self._streams = 0

    # -- the console's own -------------------------------------------------------------------------

    async def overview(self, request: Request) -> Response:
        """All agents and volumes."""
        asker = await self._gates.admit(request, AccessRole.VIEWER)
        return json_answer(_seen_by(asker, await self._parts.watch.overview()))

    async def events(self, request: Request) -> Response:
        """The overview whenever it changes, as server-sent events."""
        await self._gates.admit(request, AccessRole.VIEWER)
        if self._streams >= _STREAMS_MAX:
            raise RefusedRequestError(429, "too many pages are open")
        return StreamingResponse(self._watch(request), media_type="text/event-stream")

    async def _watch(self, request: Request) -> AsyncIterator[bytes]:
        """Yields events until the session or the server ends."""
        last, said = "", trio.current_time()
        self._streams += 1
        try:
            while not self._parts.stopping.is_set():
                try:
                    asker = await self._gates.admit(request, AccessRole.VIEWER)
                    overview = _seen_by(asker, await self._parts.watch.overview())
                except (RefusedRequestError, FusejournalError):
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

    async def metrics(self, request: Request) -> Response:
        """The alerts as metrics."""
        asker = await self._gates.admit(request, AccessRole.VIEWER)
        overview = _seen_by(asker, await self._parts.watch.overview())
        return Response(alert_metrics(overview), media_type=METRICS_TYPE)

    async def act_on_alert(self, request: Request) -> Response:
        """Acknowledges or silences an alert."""
        asker = await self._gates.admit_change(request, AccessRole.OPERATOR)
        asker.check_everything()
        body = await body_of(request)
        key, action = str(body.get("key", "")), str(body.get("action", "acknowledge"))
        hours = body.get("hours", 0)
        if type(hours) is not int:
            raise RefusedRequestError(400, "hours has to be a whole number")
        await self._gates.note(asker.name, request, action, key=key, hours=hours)
        await self._parts.watch.act(key, action, asker.name, hours)
        return json_answer({"key": key})

    async def try_channel(self, request: Request) -> Response:
        """Sends a message by a channel of alerts, to see whether it works."""
        asker = await self._gates.admit_change(request, AccessRole.ADMIN)
        asker.check_everything()
        name = str((await body_of(request)).get("name", ""))
        await self._gates.note(asker.name, request, "try channel", name=name)
        try:
            await self._parts.watch.delivery.send_test(name)
        except DeliveryError as error:
            raise RefusedRequestError(502, str(error)) from None
        return json_answer({"name": name})

    async def audit(self, request: Request) -> Response:
        """The newest lines of the audit."""
        asker = await self._gates.admit(request, AccessRole.ADMIN)
        asker.check_everything()
        lines = await trio.to_thread.run_sync(self._parts.audit.newest, _AUDIT_LINES)
        return json_answer({"lines": lines})

    async def openapi(self, request: Request) -> Response:
        """The description of the API."""
        await self._gates.admit(request, AccessRole.VIEWER)
        return json_answer(describe_api(self._gates.cookie))

    # -- the agents' -------------------------------------------------------------------------------

    def asking(self, route: ApiRoute) -> RequestHandler:
        """Returns the handler of a route that goes to an agent."""
        if route.method == "POST":
            return lambda request: self._change(route, request)
        if route.call in _DOWNLOADS:
            return lambda request: self._download(route, request)
        return lambda request: self._ask(route, request)

    async def _link(self, asker: Asker, agent: str) -> AgentLink:
        """Returns the link to an agent. A token for some volumes alone gets no word of one that it
        is not for, also where there is none."""
        token = asker.token
        if token is not None and not has_agent(token, agent, ()):
            agents = (await self._parts.watch.overview())["agents"]
            there = [each["name"] for one in agents if one["name"] == agent
                     for each in one["volumes"]]  # fmt: skip
            if not has_agent(token, agent, there):
                raise RefusedRequestError(403, f"the token is for no volume on {agent!r:.80}")
        return await self._parts.agents.link(agent)

    async def _ask(self, route: ApiRoute, request: Request) -> Response:
        fields = query_fields(route, request)
        has_data = route.call == "line-difference" or (route.call == "entry" and fields.get("data"))
        access = AccessRole.OPERATOR if has_data else route.access
        asker = await self._gates.admit(request, access)
        if has_data:
            noted = {**where_of(request), **fields}
            await self._gates.note(asker.name, request, f"{route.call} data", **noted)
        agent = request.path_params["agent"]
        link = await self._link(asker, agent)
        answer = await link.call(route.call, **fields)
        if route.call == "job-show":
            _check_job(asker, agent, answer)
        elif route.call == "job-list" and asker.token is not None:
            token = asker.token
            answer["jobs"] = [
                one for one in answer["jobs"] if token.is_for(agent, str(one.get("volume")))
            ]
        return json_answer(answer if asker.role >= AccessRole.OPERATOR else seen_by_viewer(answer))

    async def _change(self, route: ApiRoute, request: Request) -> Response:
        asker = await self._gates.admit_change(request, route.access)
        body = await body_of(request)
        known = {one.name for one in route.parameters}
        if unknown := sorted(set(body) - known):
            raise RefusedRequestError(400, f"{unknown[0]!r:.80} is not known here")
        fields = {**body, **path_fields(request)}
        agent = request.path_params["agent"]
        if route.call == "job-create":
            asker.check_volume(agent, str(body.get("volume")))
        link = await self._link(asker, agent)
        if route.call == "job-order" and asker.token is not None:
            _check_job(asker, agent, await link.call("job-show", id=fields["id"]))
        noted = {**where_of(request), **without_secrets(route, body)}
        await self._gates.note(asker.name, request, route.call, **noted)
        fields |= {"user": asker.name, "access": asker.role.label}
        return json_answer(await link.call(route.call, **fields))

    async def _download(self, route: ApiRoute, request: Request) -> Response:
        fields = query_fields(route, request)
        asker = await self._gates.admit(request, route.access)
        await self._gates.note(asker.name, request, "download", **where_of(request), **fields)
        link = await self._link(asker, request.path_params["agent"])
        parts = link.parts(route.call, **fields)
        # The first part tells an error while the answer can still be one.
        first = await anext(parts, b"")

        async def pieces() -> AsyncGenerator[bytes, None]:
            async with aclosing(parts):
                yield first
                async for part in parts:
                    yield part

        return DownloadResponse(pieces())


def _check_job(asker: Asker, agent: str, job: dict[str, Any]) -> None:
    """Raises RefusedRequestError for a token that is not for a job's volume, which is not named."""
    if asker.token is not None and not asker.token.is_for(agent, str(job.get("volume"))):
        raise RefusedRequestError(403, "the token is not for the volume of this job")


def _seen_by(asker: Asker, overview: dict[str, Any]) -> dict[str, Any]:
    return overview if asker.token is None else seen_by_token(asker.token, overview)
