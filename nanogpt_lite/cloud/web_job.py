"""The server of one run in a container on Modal: what a web endpoint answers."""

import asyncio
import contextlib

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from nanogpt_lite.cloud import jobs
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.errors import UserError
from nanogpt_lite.http_api.answers import error_body
from nanogpt_lite.server import (
    application,  # noqa: F401 # which `serving` imports when it is needed: it is to be in a memory snapshot
    serving,
)

ANSWER_SECONDS = 90  # Modal cuts a request after 150, and some pass until a container has started


class RunApplication:
    """The server of the run `name`, or of the newest one if that is empty.

    Who may ask is decided before, by Modal's proxy. If there is no such run, each answer says so, until there is one: a
    container that ends with an error would be started again and again.
    """

    def __init__(self, storage: Storage, name: str, *, device: str, threads: int) -> None:
        self.storage, self.name, self.device, self.threads = storage, name, device, threads
        self._application: ASGIApp | None = None
        self._finding = asyncio.Lock()
        with contextlib.suppress(UserError):
            self._application = self._find()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._finding:
                if self._application is None:
                    self._application = await asyncio.to_thread(self._find)
        except UserError as error:
            if scope["type"] == "http":
                body = error_body(for_modal(str(error)), "server_error")
                await JSONResponse(body, 503)(scope, receive, send)
            return
        await self._application(scope, receive, send)

    def _find(self) -> ASGIApp:
        run = jobs.find_run(self.storage, self.name)
        return serving.app(
            run,
            allowed_hosts=["*"],
            device=self.device,
            threads=self.threads,
            answer_seconds=ANSWER_SECONDS,
            training=False,
        )
