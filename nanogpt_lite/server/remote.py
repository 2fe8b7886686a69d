"""A server that stands before another one, such as on Modal: it passes requests on, with a key that it alone knows.

A browser cannot send the headers that Modal's proxy demands of each request; this server can.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Collection, Mapping
from urllib.parse import unquote

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanogpt_lite.config.options import ServeConfig
from nanogpt_lite.errors import UserError, first_line
from nanogpt_lite.http_api.answers import encode_event, error_body
from nanogpt_lite.http_api.request_body import MAX_BODY, read_bytes
from nanogpt_lite.http_api.training_request import MAX_TEXT_BYTES
from nanogpt_lite.server.access import AccessControl
from nanogpt_lite.server.error_answers import HANDLERS
from nanogpt_lite.server.event_stream import send_in_time, wait_until_gone
from nanogpt_lite.server.page_files import PageFiles

ID_VARIABLE, SECRET_VARIABLE = "MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET"
CONNECT_SECONDS = 10.0
KEEP_SECONDS = 2.0  # a connection that is not used: less than the other server keeps it
REQUEST_HEADERS = (b"content-type", b"accept", b"authorization")
ANSWER_HEADERS = ("content-type", "retry-after", "www-authenticate")


def make_remote_application(settings: ServeConfig, *, allowed_hosts: Collection[str]) -> "tuple[ASGIApp, RemoteServer]":
    """An application that asks the server at `settings.remote`, and that server.

    `UserError` if the address cannot be used, or the key of Modal's proxy in the environment.
    """
    # of a request to this server, a token is for this one
    names = [name for name in REQUEST_HEADERS if not (settings.token and name == b"authorization")]
    remote = RemoteServer(settings.remote, proxy_headers(os.environ), passed_headers=names)
    forward = Forwarding(remote)
    routes = PageFiles().routes()  # without asking the other server; other paths would start a container for nothing
    routes += [Route(path, forward) for path in ("/v1/{path:path}", "/api/{path:path}", "/health")]
    application = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=remote.lifespan)
    # not even /health is open: each request to the other server may cost something
    return AccessControl(application, allowed_hosts=allowed_hosts, token=settings.token, open_paths=()), remote


def proxy_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """The headers that Modal's proxy demands; none without a key. `UserError` if it is incomplete or no valid one."""
    token_id, secret = (environment.get(name, "").strip() for name in (ID_VARIABLE, SECRET_VARIABLE))
    for name, value in ((ID_VARIABLE, token_id), (SECRET_VARIABLE, secret)):
        if not value and (token_id or secret):
            raise UserError(
                f"the environment variable {name} is not set; give it too: a key of Modal's proxy is both "
                f"{ID_VARIABLE} and {SECRET_VARIABLE}"
            )
        if not re.fullmatch(r"[!-~]*", value):
            raise UserError(f"{name} has a character that no key has; copy it again from Modal's settings")
    return {"Modal-Key": token_id, "Modal-Secret": secret} if secret else {}


class RemoteServer:
    """The server that is asked."""

    def __init__(self, address: str, headers: Mapping[str, str], *, passed_headers: Collection[bytes]) -> None:
        """`headers` are added to each request, which also keeps those of its own that `passed_headers` names."""
        self.address = address.rstrip("/").removesuffix("/v1")  # with which OpenAI's clients name a server
        self._headers, self._passed_headers = headers, passed_headers
        self.is_closed = False
        self.answering: set[asyncio.Task[None]] = set()
        try:
            self._url = httpx.URL(self.address)
            self._client = self._make_client()
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise UserError(
                f"{address} cannot be asked ({first_line(error)}); give another `remote`, and see HTTPS_PROXY and "
                "ALL_PROXY in the environment"
            ) from None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """The time in which the application runs."""
        if self._client.is_closed:
            self._client = self._make_client()
        self.is_closed = False
        async with self._client:
            yield

    def close(self) -> None:
        """End the answers that are being passed on."""
        self.is_closed = True
        for task in self.answering:
            task.cancel()

    @contextlib.asynccontextmanager
    async def answer(
        self, request: Request, target: bytes, *, method: str, content: bytes = b""
    ) -> AsyncIterator[httpx.Response]:
        """Ask for a target (a path and a query) with the headers of a request.

        `HTTPException` if there is no answer, or one of something between here and the server.
        """
        headers = [(name, value) for name, value in request.headers.raw if name in self._passed_headers]
        url = self._url.copy_with(raw_path=self._url.raw_path.rstrip(b"/") + target)
        asked = self._client.stream(
            method, url, content=content, headers=[*headers, (b"accept-encoding", b"identity")], follow_redirects=False
        )
        try:
            async with asked as response:
                if refusal := await self._refusal(response):
                    raise refusal
                yield response
        except httpx.HTTPError as error:  # its text may have a part of the request, with the key
            reason = first_line(error) if isinstance(error, httpx.ConnectError) else type(error).__name__
            message = f"{self.address} cannot be asked ({reason}); is it running, and is this its address?"
            raise HTTPException(502, message) from None

    def _make_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # an answer may take long; its client may leave
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_SECONDS),
            trust_env=self._url.scheme == "https",  # else what is not encrypted would go to a proxy of the environment
        )

    async def _refusal(self, response: httpx.Response) -> HTTPException | None:
        """The error of an answer that is not from the server itself; None for one that is."""
        if response.status_code == 303:  # docs/modal.md
            return HTTPException(504, f"{self.address} took longer than a request to Modal may; ask again, or for less")
        if response.is_redirect:
            to = response.headers.get("location", "")
            return HTTPException(502, f"{self.address} sends requests on to {to}; give that address, if it is right")
        if response.is_success or response.headers.get("content-type", "").startswith("application/json"):
            return None
        said = first_line((await response.aread()).decode(errors="replace") or f"status {response.status_code}")
        if response.status_code in (401, 403, 407):
            remedy = f"set {ID_VARIABLE} and {SECRET_VARIABLE} to a proxy auth token of the workspace"
        else:
            remedy = "is it deployed, and is this its address?"
        return HTTPException(response.status_code, f"{self.address} refuses the request ({said}); {remedy}")


class Forwarding:
    """The endpoint that passes a request on, and its answer back as it comes. With its client, the request ends."""

    def __init__(self, remote: RemoteServer) -> None:
        self.remote = remote

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        max_body = MAX_TEXT_BYTES if request.url.path.endswith("/api/trainings") else MAX_BODY
        target, content = _target(scope), await read_bytes(request, max_body)
        answering = asyncio.create_task(self._answer(request, target, content, send))
        leaving = asyncio.create_task(wait_until_gone(request))
        self.remote.answering.add(answering)
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and not answering.cancelled():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            self.remote.answering.discard(answering)

    async def _answer(self, request: Request, target: bytes, content: bytes, send: Send) -> None:
        is_stream = has_begun = False
        try:
            async with self.remote.answer(request, target, method=request.method, content=content) as response:
                is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
                names = [name for name in ANSWER_HEADERS if name in response.headers]
                headers = [(name.encode(), response.headers[name].encode()) for name in names]
                await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
                has_begun = True
                async for chunk in response.aiter_raw():
                    await send_in_time(send, _body(chunk, more=True))
                await send(_body(b"", more=False))
        except HTTPException as error:
            if not has_begun:
                raise
            if is_stream:
                await send(_body(_last_event(error.detail), more=False))
        except asyncio.CancelledError:
            if self.remote.is_closed and is_stream:
                await send(_body(_last_event("the server has stopped"), more=False))
            elif self.remote.is_closed and not has_begun:
                raise HTTPException(503, "the server has stopped") from None
            raise
        except TimeoutError:
            pass  # the client takes nothing; the connection is closed without the end of the stream


def _last_event(message: str) -> bytes:
    """The end of a stream whose status is sent already, and which perhaps broke off in the middle of an event."""
    return b"\n\n" + encode_event(error_body(message, "server_error"))


def _target(scope: Scope) -> bytes:
    """Path and query of a request as they came. `HTTPException` if they may mean a path above the server's."""
    path: bytes = scope.get("raw_path") or b""
    if not path.startswith(b"/") or {".", ".."} & {*re.split(r"[/\\]", unquote(path.decode("latin-1")))}:
        raise HTTPException(400, "the path of the request has a part . or .., or no slash before it; leave it out")
    return path + (b"?" + scope["query_string"] if scope["query_string"] else b"")


def _body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}
