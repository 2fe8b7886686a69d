"""`ng.serve` and `ng.app`: the application run by uvicorn, or for any other ASGI server."""

import asyncio
import importlib
import ipaddress
import socket
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Unpack
from urllib.parse import urlsplit

from nanogpt_lite.config.options import LOOPBACK_NAMES, ServeConfig
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.errors import UserError

if TYPE_CHECKING:  # which need an extra, or take long to import
    from starlette.types import ASGIApp, Receive, Scope, Send

    from nanogpt_lite.api.inference import Loaded
    from nanogpt_lite.config.keyword_types import AppOptions, ServeOptions
    from nanogpt_lite.runs.run_folder import RunLike

OPENING_SECONDS = 0.3  # until a browser is opened: the server answers by then
OPTIONS_WITH_REMOTE = ("remote", "host", "port", "token", "max_waiting")
SHUTDOWN_SECONDS = 2  # for requests that are being answered
MORE_CONNECTIONS = 100  # than requests may wait; further ones are refused at once
CLIENT_MILLISECONDS = 120_000  # for a client to confirm what was sent to it
BACKLOG = 2048  # connections that the system accepts before the server does


class Work(Protocol):
    """What an application does for its clients: the jobs of a queue, or answers of another server."""

    is_closed: bool

    def close(self) -> None:
        """End all of it, and begin nothing more."""


@with_options(ServeConfig, without=("host", "port"))
def app(
    run: "RunLike | Loaded" = None, *, allowed_hosts: Sequence[str] = LOOPBACK_NAMES, **options: "Unpack[AppOptions]"
) -> "ASGIApp":
    """An ASGI application that answers requests for text from a run, for any ASGI server.

    `run` may be what `load` returned. `allowed_hosts`: the names under which the server may be asked; with "*" it is
    any name, and pages of other sites may ask it (DNS rebinding) unless there is a token; so it starts no trainings
    then. With `remote`, the
    requests are passed on to another server, which has the runs: no `run` is given then. `UserError` if the run that is
    named has no checkpoint, or without the extra `serve`.
    """
    settings = ServeConfig.from_dict({**options})
    if isinstance(allowed_hosts, str):
        raise UserError(f"`allowed_hosts={allowed_hosts!r}` is one text; give a list: `[{allowed_hosts!r}]`")
    _require_no_other_options(run, options)
    return _make(run, settings, allowed_hosts)[0]


@with_options(ServeConfig)
def serve(run: "RunLike | Loaded" = None, *, open_browser: bool = False, **options: "Unpack[ServeOptions]") -> None:
    """Show a run on a page and answer requests for text, until the process is interrupted (`KeyboardInterrupt`).

    `open_browser`: open the page. `run` may be what `load` returned. Without one, it is the newest, and there may be
    none yet. `UserError` if the run that is named has no checkpoint, if the port is taken, without the extra `serve`,
    in a notebook, or for an address beyond this machine without a `token`. `remote`: see `app`.
    """
    settings = ServeConfig.from_dict({**options})
    _require_no_other_options(run, options)
    _require_package("uvicorn")
    _require_no_event_loop()
    is_loopback = _is_loopback(settings.host)
    other = urlsplit(settings.remote)
    if is_loopback and other.hostname in LOOPBACK_NAMES and other.port == settings.port:
        raise UserError(f"`remote={settings.remote!r}` is this server itself; give it another `port`")
    if not is_loopback and not settings.token:
        raise UserError(
            f"`host={settings.host!r}` lets other machines ask this server; give a `token` that they have to know, or "
            "leave `host` out"
        )
    # of addresses beyond this machine, the token keeps foreign pages out
    hosts = (*LOOPBACK_NAMES, _compressed(settings.host)) if is_loopback else ("*",)
    application, work = _make(run, settings, hosts)
    with _listen(settings.host, settings.port) as listener:
        address = f"http://{_in_url(settings.host)}:{listener.getsockname()[1]}"
        print(f"serving at {address}; open it in a browser, stop it by Ctrl-C", file=sys.stderr, flush=True)
        if open_browser:
            threading.Timer(OPENING_SECONDS, webbrowser.open, [address]).start()
        _run(application, work, listener, max_connections=settings.max_waiting + MORE_CONNECTIONS)


def _make(run: "RunLike | Loaded", settings: ServeConfig, allowed_hosts: Sequence[str]) -> "tuple[ASGIApp, Work]":
    """The application, and what it does for its clients."""
    _require_package("starlette")
    settings = settings.replace({"token": _read_token(settings.token)})
    if "*" in allowed_hosts and not settings.token:  # pages of other sites might ask
        settings = settings.replace({"training": False})
    if settings.remote:
        _require_package("httpx")
        from nanogpt_lite.server.remote import make_remote_application

        return make_remote_application(settings, allowed_hosts=allowed_hosts)
    from nanogpt_lite.server.application import make_application
    from nanogpt_lite.server.generation_queue import GenerationQueue

    jobs = GenerationQueue(settings.max_waiting)
    return make_application(run, settings, jobs, allowed_hosts=allowed_hosts), jobs


def _run(application: "ASGIApp", work: Work, listener: socket.socket, *, max_connections: int) -> None:
    """Run an application until the process is interrupted."""
    import uvicorn

    class Server(uvicorn.Server):
        """A server that first ends the texts that are being generated, and then waits for its connections."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            work.close()
            await super().shutdown(sockets)

    async def ending_quietly(scope: "Scope", receive: "Receive", send: "Send") -> None:
        try:
            await application(scope, receive, send)
        except asyncio.CancelledError:  # after `timeout_graceful_shutdown`; else it would be logged as a failure
            if not work.is_closed:
                raise

    config = uvicorn.Config(
        ending_quietly,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    Server(config).run(sockets=[listener])


def _require_no_other_options(run: "RunLike | Loaded", options: Mapping[str, object]) -> None:
    """`UserError` if `remote` is given beside what only the other server can decide."""
    if "remote" not in options:
        return
    if not options["remote"]:
        raise UserError("`remote` is empty; give the address of a server, or leave it out")
    if run is not None:
        raise UserError("`remote` is a server that has runs of its own; leave the run out (`out_dir`)")
    if others := [name for name in options if name not in OPTIONS_WITH_REMOTE]:
        raise UserError(f"`{others[0]}` is for the `remote` server to decide; leave it out, or give it there")


def _require_package(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        raise UserError(f"a server needs {name}; install it: pip install 'nanogpt-lite[serve]'") from None


def _require_no_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UserError("a server cannot run in a notebook, whose event loop is running; start it in a terminal")


def _read_token(token: str) -> str:
    """The token, or what is in the file that it names."""
    if not token.startswith("FILE:"):
        return token
    path = token.removeprefix("FILE:")
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token file {path!r} cannot be read ({error}); give a file of UTF-8 text") from error
    if not content:
        raise UserError(f"the token file {path!r} is empty; write a secret into it")
    return content


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _compressed(host: str) -> str:
    """An address in its shortest form, as browsers send it; a name as it is."""
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        return host


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. `UserError` if the address is taken, or none of this machine."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
    except OSError as error:
        raise UserError(f"`host={host!r}` is no address of this machine ({error}); leave it out") from error
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        user_timeout: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
        if user_timeout is not None:  # else a client that takes nothing would keep its connection for ever
            listener.setsockopt(socket.IPPROTO_TCP, user_timeout, CLIENT_MILLISECONDS)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"{host}, port {port}, cannot be listened on ({error}); give another `port`") from error
    return listener


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
