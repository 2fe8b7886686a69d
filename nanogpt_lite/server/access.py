"""Who may ask: checks of each request before anything else reads it, and the headers of each answer.

A server on a laptop can be reached by every page that its browser shows. So a request needs the name of this machine
in `Host` (against DNS rebinding), and none of another site in `Origin`.
"""

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanogpt_lite.http_api.answers import error_body
from nanogpt_lite.server.page_files import is_page

OPEN_PATHS = ("/health",)  # and the page, which contains nothing of any run
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class AccessControl:
    """ASGI middleware. `allowed_hosts`: names that `Host` may have, `*` for any. `token`: empty for none.

    `open_paths` and the page need no token.
    """

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Collection[str], token: str, open_paths: Collection[str] = OPEN_PATHS
    ) -> None:
        self.app, self.token, self.open_paths = app, token, open_paths
        self.allowed_hosts = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        path: str = scope["path"]
        refusal = self._refuse(Headers(scope=scope), path.removeprefix(scope.get("root_path", "")))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refuse(self, headers: Headers, path: str) -> JSONResponse | None:
        """The answer to a request that is not allowed; None if it is."""
        hosts = headers.getlist("host")
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None or not ("*" in self.allowed_hosts or host in self.allowed_hosts):
            names = ", ".join(sorted(self.allowed_hosts))
            return _refusal(421, f"the request is not for this server: its Host must be one of {names}")
        for origin in headers.getlist("origin"):
            if _site(origin) != hosts[0].lower():
                return _refusal(403, "the request comes from a page of another site, which may not ask this server")
        if self.token and path not in self.open_paths and not is_page(path):
            given = headers.get("authorization", "").encode("latin-1")  # the bytes that were sent
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                refusal = _refusal(401, "the request needs the server's token: Authorization: Bearer TOKEN")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                return refusal
        return None


def _host_name(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None if it is no valid one."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # ValueError unless it is a number of a port
    except ValueError:
        return None
    is_plain = parts.netloc == host and "@" not in host and not (parts.path or parts.query or parts.fragment)
    return parts.hostname if is_plain else None


def _site(origin: str) -> str | None:
    """The name and the port in an Origin header; None if it is no valid one."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse(error_body(message, "permission_error"), status)
