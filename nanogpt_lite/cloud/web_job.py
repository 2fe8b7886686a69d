"""The server of one run in a container on Modal: what a web endpoint answers."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nanogpt_lite.cloud import jobs
from nanogpt_lite.cloud.storage import Storage
from nanogpt_lite.config.options import LoadConfig
from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.errors import UserError
from nanogpt_lite.server import serving
from nanogpt_lite.server.answers import error_body

ANSWER_SECONDS = 120  # Modal cuts a request after 150, and some pass until a container has started


def make_application(storage: Storage, name: str = "", *, device: str) -> ASGIApp:
    """The server of the run `name`, by default the newest one. Who may ask is decided before, by Modal's proxy.

    If there is no such run, each answer says so: a container that ends with an error would be started again and again.
    """
    try:
        run = jobs.find_run(storage, name, LoadConfig.checkpoint)
        return serving.app(run, allowed_hosts=["*"], device=device, answer_seconds=ANSWER_SECONDS)
    except UserError as error:
        return _without_run(for_modal(str(error)))


def _without_run(message: str) -> ASGIApp:
    async def answer(_: Request) -> Response:
        return JSONResponse(error_body(message, "server_error"), 503)

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
