"""The ASGI application: which path does what. `serving` runs it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection, Generator
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nanogpt_lite import __version__
from nanogpt_lite.api import inference, inspection
from nanogpt_lite.api.inference import Loaded
from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import LoadConfig, RuntimeConfig, ServeConfig
from nanogpt_lite.device import devices
from nanogpt_lite.errors import UserError
from nanogpt_lite.http_api import answers, completion_request, inspection_request, option_fields, training_request
from nanogpt_lite.http_api.answers import AnswerForm, Piece, PieceMaker
from nanogpt_lite.http_api.completion_request import MAX_TOKENS_WITH_LOGPROBS, TextRequest
from nanogpt_lite.http_api.fields import FieldError
from nanogpt_lite.http_api.inspection_request import InspectionRequest
from nanogpt_lite.http_api.request_body import read_object
from nanogpt_lite.runs import run_progress
from nanogpt_lite.runs.run_folder import RunLike
from nanogpt_lite.server.access import AccessControl
from nanogpt_lite.server.deadline import Deadline
from nanogpt_lite.server.error_answers import HANDLERS
from nanogpt_lite.server.event_stream import Counts, EventStream, Step, first_item, stopped_with_client
from nanogpt_lite.server.generation_queue import GenerationQueue
from nanogpt_lite.server.page_files import PageFiles
from nanogpt_lite.server.run_catalog import Entry, RunCatalog
from nanogpt_lite.server.run_list import describe_runs
from nanogpt_lite.server.trainings import TRAINING_DEFAULTS, Trainings, dataset_names


def make_application(
    run: RunLike | Loaded, settings: ServeConfig, jobs: GenerationQueue, *, allowed_hosts: Collection[str]
) -> ASGIApp:
    """An application for a run, or for what `load` returned. `UserError` if the run has no checkpoint."""
    server = Server(RunCatalog(run, settings), jobs, settings)
    routes = [
        *PageFiles().routes(),
        Route("/health", server.health),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.model),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/api/options", server.options),
        Route("/api/runs", server.runs),
        Route("/api/runs/{name}/records", server.records),
        Route("/api/runs/{name}/stop", server.stop_training, methods=["POST"]),
        Route("/api/runs/{name}/resume", server.resume_training, methods=["POST"]),
        Route("/api/trainings", server.start_training, methods=["POST"]),
        Route("/api/inspect", server.inspect, methods=["POST"]),
    ]
    application = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=server.lifespan)
    application.router.redirect_slashes = False
    # around all of it: Starlette answers to a failure outside of its own middleware
    return AccessControl(application, allowed_hosts=allowed_hosts, token=settings.token)


class Server:
    """The endpoints, and what they share: the networks, and the thread that computes."""

    def __init__(self, catalog: RunCatalog, jobs: GenerationQueue, settings: ServeConfig) -> None:
        self.catalog, self.jobs, self.settings = catalog, jobs, settings
        self.trainings = Trainings(option_fields.changed_options(RuntimeConfig, settings, ("device", "threads")))
        self.num_tokens = 0  # that were generated since the start

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """The time in which the application runs."""
        self.jobs.open()
        yield
        self.jobs.close()
        await asyncio.to_thread(self.jobs.join)

    async def health(self, _: Request) -> Response:
        """Whether the server answers, and what it does."""
        state = {"is_generating": self.jobs.is_running, "waiting": self.jobs.num_waiting, "tokens": self.num_tokens}
        return JSONResponse({"status": "ok", **state})

    async def models(self, _: Request) -> Response:
        """The networks that can be asked for."""
        entries = await run_in_threadpool(self.catalog.entries)
        return JSONResponse({"object": "list", "data": [_describe(entry) for entry in entries]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        return JSONResponse(_describe(await run_in_threadpool(self.catalog.find, request.path_params["name"])))

    async def runs(self, _: Request) -> Response:
        """All runs, and how far they are."""
        training = await run_in_threadpool(self.trainings.describe)
        started = training["name"] if training is not None and training["is_running"] else ""
        runs = await run_in_threadpool(describe_runs, self.catalog, started=started)
        return await run_in_threadpool(_json_of_files, {**runs, "training": training})

    async def records(self, request: Request) -> Response:
        """The records of a run's metrics file: those after the cursor `after` of an earlier answer."""
        run = await run_in_threadpool(self.catalog.find_run, request.path_params["name"])
        new = await run_in_threadpool(
            run_progress.read_more, run.out_dir / "metrics.jsonl", request.query_params.get("after", "")
        )
        return await run_in_threadpool(_json_of_files, vars(new))

    async def options(self, _: Request) -> Response:
        """The options that requests may have, with their help, and what can be trained on."""
        datasets = await run_in_threadpool(dataset_names)
        device = await run_in_threadpool(devices.resolve_device, self.settings.device)
        more = {
            "datasets": datasets,
            "can_train": self.settings.training,
            "training_defaults": TRAINING_DEFAULTS,
            "default_preset": recipe.default_preset(device.type),
            "version": __version__,
        }
        load = option_fields.changed_options(LoadConfig, self.settings, LoadConfig.names())
        load.pop("checkpoint", None)  # each model has its own
        return JSONResponse({**option_fields.describe_options(self.settings), "load": load, **more})

    async def start_training(self, request: Request) -> Response:
        """Train a new run, in a process of its own."""
        self._require_training_allowed()
        self.trainings.require_idle()  # before a long text is read for nothing
        body = await read_object(request, training_request.MAX_TEXT_BYTES)
        await run_in_threadpool(self.trainings.start, training_request.read_training(body))
        return JSONResponse({"training": await run_in_threadpool(self.trainings.describe)}, 201)

    async def resume_training(self, request: Request) -> Response:
        """Continue the training of a run."""
        self._require_training_allowed()
        options = training_request.read_resume(await read_object(request))
        name = request.path_params["name"]
        run = await run_in_threadpool(self.catalog.find_run, name)
        await run_in_threadpool(self.trainings.resume, name, run, options)
        return JSONResponse({"training": await run_in_threadpool(self.trainings.describe)}, 201)

    async def stop_training(self, request: Request) -> Response:
        """Let a training that was started here save its state and end."""
        self._require_training_allowed()
        name = request.path_params["name"]
        if not await run_in_threadpool(self.trainings.stop, name):
            await run_in_threadpool(self.catalog.find_run, name)
            raise FieldError(
                "name",
                f"this server trains no run {name}; a training that was started elsewhere is stopped by Ctrl-C there",
            )
        return JSONResponse({"training": await run_in_threadpool(self.trainings.describe)})

    def _require_training_allowed(self) -> None:
        if not self.settings.training:
            raise HTTPException(403, "this server starts no trainings; use nanogpt-lite train where it runs")

    async def completions(self, request: Request) -> Response:
        """Texts that follow a prompt."""
        asked = completion_request.read_completion(await read_object(request), self.settings)
        return await self._answer(request, asked, is_chat=False)

    async def chat(self, request: Request) -> Response:
        """The next message of a chat."""
        if not self.settings.chat_template:
            raise UserError(
                "this server has no chat template, and a network that was trained on a text knows no chats; use "
                "/v1/completions, or start the server with `chat_template`"
            )
        template = self.settings.chat_template.replace("\\n", "\n")  # as a shell passes it
        asked = completion_request.read_chat(await read_object(request), self.settings, template)
        return await self._answer(request, asked, is_chat=True)

    async def inspect(self, request: Request) -> Response:
        """What a network makes of a text."""
        asked = inspection_request.read_inspection(await read_object(request), self.settings)
        entry = await run_in_threadpool(self.catalog.find, asked.model)
        job = self.jobs.submit(partial(_inspect, self.catalog, entry, asked, self._deadline()))
        async with stopped_with_client(request, job):
            async for content in job:
                if content:
                    return Response(content, media_type="application/json")
        raise self._stopped()

    async def _answer(self, request: Request, asked: TextRequest, *, is_chat: bool) -> Response:
        entry = await run_in_threadpool(self.catalog.find, asked.model)
        form = AnswerForm(entry.name, is_chat=is_chat)
        job = self.jobs.submit(partial(self._generate, entry, asked, self._deadline()))
        if asked.streams:
            first = await first_item(request, job)
            if first is None:
                raise self._stopped()
            return EventStream(job, first, form, with_usage=asked.with_usage)
        pieces: list[Piece] = []
        counts: Counts = (0, 0)
        async with stopped_with_client(request, job):
            async for step in job:
                pieces += step[0]
                counts = step[1]
        if job.is_cancelled:
            raise self._stopped()
        return JSONResponse(form.whole(pieces, *counts))

    def _deadline(self) -> Deadline:
        return Deadline(self.settings.answer_seconds)

    def _stopped(self) -> Exception:
        """The error of a request whose job was stopped."""
        return HTTPException(503, "the server has stopped") if self.jobs.is_closed else ClientDisconnect()

    def _generate(self, entry: Entry, asked: TextRequest, deadline: Deadline) -> Generator[Step, None, None]:
        """The texts that a request asks for, in the thread that computes. After the deadline, they end.

        The first item comes before the first token.
        """
        deadline.require_time_left()
        loaded = self.catalog.load(entry)
        _, tokenizer = loaded
        prompt = asked.prompt if asked.prompt is not None else inference.default_prompt(tokenizer)
        with_logits = asked.logprobs is not None
        steps = inference.continue_text(
            loaded, prompt, asked.settings, stops=asked.stops, with_logits=with_logits, is_over=deadline.is_over
        )
        prompt_tokens = len(tokenizer.encode(prompt))
        maker = PieceMaker(
            tokenizer, asked.settings.num_samples, asked.logprobs, offset=len(prompt) if asked.echo else 0
        )
        with contextlib.closing(steps):
            for pieces in _echo(loaded, prompt, prompt_tokens, asked) if asked.echo else [[]]:
                deadline.require_time_left()
                yield pieces, (prompt_tokens, 0)
            for chunks in steps:
                before = maker.num_tokens
                pieces = list(maker.add(chunks))
                self.num_tokens += maker.num_tokens - before
                yield pieces, (prompt_tokens, maker.num_tokens)


def _echo(loaded: Loaded, prompt: str, prompt_tokens: int, asked: TextRequest) -> Generator[list[Piece], None, None]:
    """The prompt, as the beginning of each text; before it nothing, as often as a part of it has been read."""
    logprobs = None
    if asked.logprobs is not None:
        if prompt_tokens > MAX_TOKENS_WITH_LOGPROBS:
            raise FieldError(
                "prompt",
                f"the prompt has {prompt_tokens} tokens, which is too much for their log-probabilities; give at most "
                f"{MAX_TOKENS_WITH_LOGPROBS}, or leave out `echo` or `logprobs`",
            )
        top = max(asked.logprobs, 1)
        with contextlib.closing(
            inspection.read_with(loaded, prompt, asked.settings, top=top, attention=False, lens=False)
        ) as steps:
            for reading in steps:
                if reading is None:
                    yield []
                else:
                    logprobs = answers.prompt_logprobs(reading, asked.logprobs)
    yield [Piece(index, prompt, logprobs) for index in range(asked.settings.num_samples)]


def _inspect(
    catalog: RunCatalog, entry: Entry, asked: InspectionRequest, deadline: Deadline
) -> Generator[bytes, None, None]:
    """The JSON of a reading, in the thread that computes; before it nothing, for each part of the text that is read."""
    deadline.require_time_left()
    loaded = catalog.load(entry)
    model, tokenizer = loaded
    inspection_request.require_readable(asked, len(tokenizer.encode(asked.text, what="text")), model.config)
    with contextlib.closing(
        inspection.read_with(
            loaded, asked.text, asked.settings, top=asked.settings.top, attention=asked.attention, lens=asked.lens
        )
    ) as steps:
        for reading in steps:
            if reading is None:
                deadline.require_time_left()
                yield b""
            else:
                yield inspection_request.encode_reading(reading, tokenizer, asked, entry.name)


def _json_of_files(content: dict[str, Any]) -> Response:
    """JSON of what files say: they may hold a half of a surrogate pair, which is sent as an escape."""
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def _describe(entry: Entry) -> dict[str, Any]:
    return {"id": entry.name, "object": "model", "created": entry.created, "owned_by": "nanogpt_lite"}
