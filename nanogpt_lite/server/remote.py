"""A server that stands before another one, such as on Modal: it passes requests on, with a key that it alone knows.

A browser cannot send the headers that Modal's proxy demands of each request; this server can.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Mapping
from urllib.parse import quote

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanogpt_lite.config.options import ServeConfig
from nanogpt_lite.errors import UserError, first_line
from nanogpt_lite.server.access import AccessControl
from nanogpt_lite.server.answers import encode_event, error_body
from nanogpt_lite.server.error_answers import HANDLERS
from nanogpt_lite.server.event_stream import send_in_time
from nanogpt_lite.server.request_body import read_bytes
from nanogpt_lite.server.start_page import start_page

ID_VARIABLE, SECRET_VARIABLE = "MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET"
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 180.0  # until an answer begins, and between two parts of it; Modal cuts after 150
MAX_CONNECTIONS = 200
REQUEST_HEADERS, ANSWER_HEADERS = ("content-type", "accept", "authorization"), ("content-type", "retry-after")


def make_remote_application(settings: ServeConfig, *, allowed_hosts: Collection[str]) -> ASGIApp:
    """An application that asks the server at `settings.remote`. `UserError` if there is half of a key."""
    # of a request to this server, a token is for this one
    names = [name for name in REQUEST_HEADERS if not (settings.token and name == "authorization")]
    remote = RemoteServer(settings.remote.rstrip("/"), proxy_headers(os.environ), passed_headers=names)
    routes = [
        Route("/", remote.start_page),
        Route("/{path:path}", Forwarding(remote)),
    ]
    application = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=remote.lifespan)
    return AccessControl(application, allowed_hosts=allowed_hosts, token=settings.token)


def proxy_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """The headers that Modal's proxy demands; none without a key. `UserError` if only one half of it is given."""
    token_id, secret = (environment.get(name, "") for name in (ID_VARIABLE, SECRET_VARIABLE))
    if bool(token_id) != bool(secret):
        missing = SECRET_VARIABLE if token_id else ID_VARIABLE
        raise UserError(f"{missing} is not set; a key of Modal's proxy is both {ID_VARIABLE} and {SECRET_VARIABLE}")
    return {"Modal-Key": token_id, "Modal-Secret": secret} if secret else {}


class RemoteServer:
    """The server that is asked."""

    def __init__(self, url: str, headers: Mapping[str, str], *, passed_headers: Collection[str]) -> None:
        """`headers` are added to each request, which also keeps those of its own that `passed_headers` names."""
        self.url, self._headers, self._passed_headers = url, headers, passed_headers
        self._client: httpx.AsyncClient | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """The time in which the application runs."""
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
        async with httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits) as self._client:
            yield

    async def start_page(self, request: Request) -> Response:
        """What this is, and how to ask it."""
        async with self.answer(request, "/v1/models", b"") as response:
            content = await response.aread()
        try:
            names = [str(model["id"]) for model in httpx.Response(200, content=content).json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise HTTPException(502, f"{self.url} is no server of nanogpt_lite; give its address") from None
        return HTMLResponse(start_page(names, str(request.base_url).rstrip("/")))

    @contextlib.asynccontextmanager
    async def answer(self, request: Request, path: str, content: bytes) -> AsyncIterator[httpx.Response]:
        """Ask for a path with the method and headers of a request.

        `HTTPException` if there is no answer, or one of something between here and the server.
        """
        assert self._client is not None, "the application has not started"
        headers = {name: request.headers[name] for name in self._passed_headers if name in request.headers}
        asked = self._client.stream(
            request.method,
            f"{self.url}{quote(path)}",  # quoted, it begins with a slash and cannot become a part of the host
            params=request.query_params,
            content=content,
            headers={**headers, "accept-encoding": "identity"},
        )
        try:
            async with asked as response:
                if refusal := await self._refusal(response):
                    raise refusal
                yield response
        except httpx.TimeoutException as error:
            message = f"{self.url} does not answer in time ({type(error).__name__}); try again"
            raise HTTPException(504, message) from None
        except httpx.HTTPError as error:
            message = f"{self.url} cannot be asked ({first_line(error)}); is it running, and is this its address?"
            raise HTTPException(502, message) from None

    async def _refusal(self, response: httpx.Response) -> HTTPException | None:
        """The error of an answer that is not from the server itself; None for one that is."""
        if response.is_redirect:
            return HTTPException(504, f"{self.url} took longer than a request to Modal may; ask for less")
        if response.is_success or response.headers.get("content-type", "").startswith("application/json"):
            return None
        said = first_line((await response.aread()).decode(errors="replace") or f"status {response.status_code}")
        if response.status_code in (401, 403, 407):
            remedy = f"set {ID_VARIABLE} and {SECRET_VARIABLE} to a proxy auth token of the workspace"
        else:
            remedy = "is it deployed, and is this its address?"
        return HTTPException(response.status_code, f"{self.url} refuses the request ({said}); {remedy}")


class Forwarding:
    """The endpoint that passes a request on, and its answer back as it comes. With its client, the request ends."""

    def __init__(self, remote: RemoteServer) -> None:
        self.remote = remote

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        content = await read_bytes(request)
        answering = asyncio.create_task(self._answer(request, content, send))
        leaving = asyncio.create_task(_wait_until_gone(request))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, request: Request, content: bytes, send: Send) -> None:
        is_stream = has_begun = False
        try:
            async with self.remote.answer(request, request.scope["path"], content) as response:
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
            if is_stream:  # its status is sent already: the stream says it, and has no [DONE]
                await send(_body(encode_event(error_body(error.detail, "server_error")), more=False))


def _body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
