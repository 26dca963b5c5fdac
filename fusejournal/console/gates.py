"""Gates that each request of the API passes: who asks, by a session's cookie or an API token;
whether that user or token may; and, for a change that a browser asks for, whether the page does
(cross-site request forgery). Logging in and out is here, too.

A token comes in a header that no other site's page can send, so it needs no further secret.

Source: OWASP's cheat sheets on sessions and CSRF; Fetch Metadata (W3C); RFC 6750; RFC 6265bis on
prefixes of cookies' names."""

import logging
from dataclasses import dataclass
from typing import Any, Final

import trio
from starlette.requests import Request
from starlette.responses import Response

from fusejournal.console.audit import Audit
from fusejournal.console.login_limits import LoginLimits, make_device_cookie
from fusejournal.console.sessions import RateLimit, Sessions, WebSession
from fusejournal.console.tokens import ApiToken, TokenBook
from fusejournal.console.users import AccessRole, ConsoleUser, UserBook, parse_access_role
from fusejournal.console.web_requests import (
    RefusedRequestError,
    body_of,
    check_json,
    check_origin,
    error_answer,
    host_of,
    json_answer,
)

log = logging.getLogger(__name__)

COOKIE: Final = "fusejournal_session"
DEVICE_COOKIE: Final = "fusejournal_device"
"""The cookie of a browser in which a user has logged in (login_limits.py)."""
_DEVICE_SECONDS: Final = 400 * 86400
CSRF_HEADER: Final = "x-csrf-token"
_NAME_CHARS_MAX: Final = 256
_FORBIDDEN_MAX: Final = 400
"""Refusals of one user or token that are audited at once; then one every six seconds."""
_POLL_HEADER: Final = "x-poll"
"""A header of what the page asks by itself, again and again."""
_STREAM: Final = "/api/events"
"""The stream of events, which the page opens by itself."""


@dataclass(frozen=True)
class Asker:
    """The user, or the token, that a request comes from."""

    name: str
    role: AccessRole
    token: ApiToken | None = None

    def check_volume(self, agent: str, volume: str) -> None:
        """Raises RefusedRequestError for a token that is not for this volume."""
        if self.token is not None and not self.token.is_for(agent, volume):
            raise RefusedRequestError(403, f"the token is not for {volume!r:.80} on {agent!r:.80}")

    def check_everything(self) -> None:
        """Raises RefusedRequestError for a token that is for some volumes alone."""
        if self.token is not None and self.token.volumes:
            raise RefusedRequestError(403, "the token is for some volumes alone")


class Gates:
    """The gates, with the sessions there are."""

    def __init__(self, users: UserBook, tokens: TokenBook, audit: Audit, *, is_tls: bool) -> None:
        self._users = users
        self._tokens = tokens
        self._audit = audit
        self._is_tls = is_tls
        self._sessions = Sessions()
        # By this prefix a browser takes it from this host alone, and by TLS.
        self.cookie = f"__Host-{COOKIE}" if is_tls else COOKIE
        self._device_cookie = f"__Host-{DEVICE_COOKIE}" if is_tls else DEVICE_COOKIE
        self._logins = LoginLimits()
        self._wrong_tokens = RateLimit(20, 6.0)
        self._requests = RateLimit(400, 0.05)
        self._forbidden = RateLimit(_FORBIDDEN_MAX, 6.0)
        self._hashing = trio.CapacityLimiter(2)

    async def admit(self, request: Request, access: AccessRole) -> Asker:
        """Returns who asks, with at least *access*. Cancelling is harmless. Raises
        RefusedRequestError."""
        if "authorization" in request.headers:
            asker = await self._token(request)
        else:
            session = await self._session(request)
            asker = Asker(session.name, parse_access_role(session.role))
        request.state.asker = asker.name
        if not self._requests.take(asker.name, trio.current_time()):
            raise RefusedRequestError(429, "too many requests: wait a moment")
        if asker.role < access:
            words = f"this is for the role {access.label}: {asker.name} is {asker.role.label}"
            raise RefusedRequestError(403, words)
        if "volume" in request.path_params:
            asker.check_volume(request.path_params["agent"], request.path_params["volume"])
        return asker

    async def admit_change(self, request: Request, access: AccessRole) -> Asker:
        """Returns who asks for a change; a browser's comes from the page. Cancelling is
        harmless. Raises RefusedRequestError."""
        if "authorization" in request.headers:
            check_json(request)
            return await self.admit(request, access)
        check_origin(request)
        asker = await self.admit(request, access)
        session = await self._session(request)
        if not session.is_csrf(request.headers.get(CSRF_HEADER, "")):
            raise RefusedRequestError(403, "the request lacks the session's secret: reload")
        return asker

    async def _session(self, request: Request) -> WebSession:
        users = await trio.to_thread.run_sync(self._users.all)
        is_poll = _POLL_HEADER in request.headers or request.url.path == _STREAM
        token, now = request.cookies.get(self.cookie, ""), trio.current_time()
        session = self._sessions.find(token, users, now, is_poll=is_poll)
        if session is None:
            raise RefusedRequestError(401, "you are not logged in: log in first")
        return session

    async def _token(self, request: Request) -> Asker:
        scheme, _, text = request.headers["authorization"].partition(" ")
        token = None
        if scheme.lower() == "bearer":
            token = await trio.to_thread.run_sync(self._tokens.find, text.strip())
        if token is None:
            if not self._wrong_tokens.take(host_of(request), trio.current_time()):
                raise RefusedRequestError(429, "too many tries: wait some minutes")
            await self.note("", request, "token refused")
            raise RefusedRequestError(401, "the token is not known, has expired, or was revoked")
        return Asker(f"token {token.name}", token.access, token)

    async def refuse(self, request: Request, status: int, words: str) -> Response:
        """Returns a refusal as an answer. One of what a user or a token may not is in the audit,
        and of very many of these the rest is refused as too many. (Those of a stranger are not:
        they would fill it.) Cancelled, there may be no line."""
        name = getattr(request.state, "asker", None)
        if status == 403 and name is not None:
            if not self._forbidden.take(name, trio.current_time()):
                return error_answer(429, "too many requests that are not for you: wait a while")
            what = {"method": request.method, "path": request.url.path, "words": words}
            try:
                await self.note(name, request, "refused", **what)
            except OSError as error:
                log.error("the audit: %s", error.strerror)  # it is refused all the same
        return error_answer(status, words)

    async def note(self, user: str, request: Request, what: str, **details: Any) -> None:
        """Puts a line into the audit. Cancelled, there is none. Raises OSError: then it must not be
        done."""
        note, host = self._audit.note, host_of(request)
        await trio.to_thread.run_sync(lambda: note(user, host, what, **details))

    # -- logging in and out ------------------------------------------------------------------------

    async def session(self, request: Request) -> Response:
        """Returns the name of the user who is logged in; empty: none is. Cancelling is harmless."""
        if not request.cookies.get(self.cookie):
            return json_answer({"name": "", "role": "", "csrf": ""})
        await self.admit(request, AccessRole.VIEWER)
        return json_answer(_session_json(await self._session(request)))

    async def login(self, request: Request) -> Response:
        """Logs in. Cancelled, there is no session."""
        body = await self._strangers_body(request, ("name", "password"))
        user = await trio.to_thread.run_sync(
            self._users.check, body["name"], body["password"], limiter=self._hashing
        )
        if user is None:
            await self.note(body["name"], request, "login refused")
            raise RefusedRequestError(403, "the name or the password is wrong")
        return await self._begin(request, user, "login")

    async def choose_password(self, request: Request) -> Response:
        """Chooses a password by a one-time code, and logs in. Cancelled, the password may be
        chosen, and there is no session."""
        body = await self._strangers_body(request, ("name", "code", "password"))
        user = await trio.to_thread.run_sync(
            self._users.choose_password,
            body["name"], body["code"], body["password"],
            limiter=self._hashing,
        )  # fmt: skip
        if user is None:
            await self.note(body["name"], request, "code refused")
            raise RefusedRequestError(403, "the name or the code is wrong, or it has expired")
        return await self._begin(request, user, "password chosen")

    async def _strangers_body(self, request: Request, names: tuple[str, ...]) -> dict[str, str]:
        check_origin(request)
        body = await body_of(request)
        texts = {name: str(body.get(name, "")) for name in names}
        name, host = texts["name"][:_NAME_CHARS_MAX], host_of(request)
        user = (await trio.to_thread.run_sync(self._users.all)).get(name)
        cookie = request.cookies.get(self._device_cookie, "")
        if not self._logins.take(name, host, user, cookie, trio.current_time()):
            raise RefusedRequestError(429, "too many tries: wait some minutes")
        return texts

    async def _begin(self, request: Request, user: ConsoleUser, what: str) -> Response:
        await self.note(user.name, request, what)
        token, session = self._sessions.begin(user, trio.current_time())
        response = json_answer(_session_json(session))
        self._set_cookie(response, self.cookie, token)
        self._set_cookie(response, self._device_cookie, make_device_cookie(user), _DEVICE_SECONDS)
        self._logins.note_login(user.name, host_of(request))
        return response

    def _set_cookie(
        self, response: Response, name: str, value: str, seconds: int | None = None
    ) -> None:
        """Sets a cookie that lasts for *seconds*; None: as long as the browser runs."""
        response.set_cookie(
            name, value, max_age=seconds, httponly=True, samesite="strict", secure=self._is_tls,
            path="/",
        )  # fmt: skip

    async def logout(self, request: Request) -> Response:
        """Logs out. Cancelled, the session may have ended without a line in the audit."""
        asker = await self.admit_change(request, AccessRole.VIEWER)
        self._sessions.end(request.cookies.get(self.cookie, ""))
        await self.note(asker.name, request, "logout")
        response = json_answer({})
        response.delete_cookie(
            self.cookie, path="/", secure=self._is_tls, httponly=True, samesite="strict"
        )
        return response


def _session_json(session: WebSession) -> dict[str, str]:
    return {"name": session.name, "role": session.role, "csrf": session.csrf}
