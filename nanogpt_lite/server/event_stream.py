"""Answers that depend on whether the client is still there: texts as they come, and jobs that end with their client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from nanogpt_lite.http_api.answers import END_OF_STREAM, AnswerForm, Piece, encode_event, error_body, merge_pieces
from nanogpt_lite.server.error_answers import describe_error
from nanogpt_lite.server.generation_queue import Job

SEND_SECONDS = 60.0  # for a client to take what was sent before

Counts = tuple[int, int]
"""Tokens of a prompt, and of the texts generated for it."""

Step = tuple[list[Piece], Counts]
"""What one step of a generation adds, and how many tokens there are by then."""


class EventStream(Response):
    """Pieces of texts as server-sent events. A client that goes away, or takes nothing for long, stops the job.

    `first`: the first item of the job, which was taken before.
    """

    def __init__(self, job: Job[Step], first: Step, form: AnswerForm, *, with_usage: bool) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.job, self.first, self.form, self.with_usage = job, first, form, with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with stopped_with_client(Request(scope, receive), self.job):
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send_in_time(send, start)
                async for event in self._events():
                    await send_in_time(send, {"type": "http.response.body", "body": event, "more_body": True})
                await send_in_time(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass  # the client takes nothing; the connection is closed without the end of the stream
        finally:
            self.job.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        counts = self.first[1]
        try:
            for event in self._encode([self.first]):
                yield event
            async for step in self.job:
                steps = [step, *self.job.take_ready()]  # more than one, if the client is slower than the network
                counts = steps[-1][1]
                for event in self._encode(steps):
                    yield event
                await asyncio.sleep(0)  # else other requests would wait while there are items
        except Exception as error:  # the status is sent already: the stream says it
            status, body = describe_error(error)
            yield encode_event(body)
            if status == 500:
                raise
            return
        if self.job.is_cancelled:
            yield encode_event(error_body("the server has stopped", "server_error"))
            return
        if self.with_usage:
            yield self.form.usage_event(*counts)
        yield END_OF_STREAM

    def _encode(self, steps: Iterable[Step]) -> Iterable[bytes]:
        pieces = [piece for step_pieces, _ in steps for piece in step_pieces]
        return [self.form.event(piece) for piece in merge_pieces(pieces)]


async def send_in_time(send: Send, message: Message) -> None:
    """Send a part of an answer. `TimeoutError` if the client takes nothing for `SEND_SECONDS`."""
    async with asyncio.timeout(SEND_SECONDS):
        await send(message)


@contextlib.asynccontextmanager
async def stopped_with_client(request: Request, job: Job[Any]) -> AsyncIterator[None]:
    """A time in which the job is stopped if the client goes away, or if an error is raised."""
    watcher = asyncio.create_task(_cancel_when_gone(request, job))
    try:
        yield
    except BaseException:
        job.cancel()
        raise
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


async def first_item(request: Request, job: Job[Step]) -> Step | None:
    """The first item: until it is there, an error in the request can still be answered. None if the client has gone."""
    async with stopped_with_client(request, job):
        async for item in job:
            return item
    return None


async def wait_until_gone(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel_when_gone(request: Request, job: Job[Any]) -> None:
    await wait_until_gone(request)
    job.cancel()
