"""Web endpoints: a server for each, which makes an input of every request, and passes messages of ASGI on."""

import asyncio
import socket
from contextlib import suppress
from itertools import count
from typing import Any

import uvicorn
from modal._serialization import deserialize_data_format, serialize_data_format
from modal_proto import api_pb2

from .calls import Call, Changes, Dispatcher, Function

ASGI = api_pb2.DATA_FORMAT_ASGI
PROXY_KEY = {"Modal-Key": "wk-local", "Modal-Secret": "ws-local"}  # what the proxy knows
PASSED = ("type", "http_version", "method", "scheme", "path", "query_string", "headers", "client")  # of a scope
MAX_SECONDS = 150.0  # for a request

_numbers = count(1)


class WebEndpoint:
    """One endpoint: a method of a class that returns an ASGI application."""

    def __init__(
        self,
        function: Function,
        method: str,
        config: api_pb2.WebhookConfig,
        dispatcher: Dispatcher,
        changes: Changes,
        calls: dict[str, Call],
    ) -> None:
        self.function, self.method, self.config = function, method, config
        self._dispatcher, self._changes, self._calls = dispatcher, changes, calls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self, lifespan="off", log_level="error"))
        self._task = asyncio.get_running_loop().create_task(self._server._serve([self._listener]))

    async def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_known = all(headers.get(name.lower()) == value for name, value in PROXY_KEY.items())
        if self.config.requires_proxy_auth and not is_known:
            await _answer(send, 401, b"modal-http: missing credentials for proxy authorization")
            return
        call = Call(f"fc-web-{next(_numbers)}", self.function, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC)
        self._calls[call.call_id] = call
        passed = {name: scope[name] for name in PASSED if scope.get(name) is not None}
        passed["headers"] = [(name, value) for name, value in scope["headers"] if not name.startswith(b"modal-")]
        arguments = serialize_data_format(((passed,), {}), api_pb2.DATA_FORMAT_PICKLE)
        message = api_pb2.FunctionInput(args=arguments, data_format=api_pb2.DATA_FORMAT_PICKLE, method_name=self.method)
        self._dispatcher.add(call, 0, message)
        receiving = asyncio.create_task(self._receive(call, receive))
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await self._send(call, send)
        except TimeoutError:
            await _answer(send, 303, b"")
        finally:
            receiving.cancel()
            with suppress(asyncio.CancelledError):
                await receiving

    async def _receive(self, call: Call, receive: Any) -> None:
        """Pass on what the client sends, and at last that it has gone."""
        while True:
            message = await receive()
            data = serialize_data_format(message, ASGI)
            call.data_in.append(api_pb2.DataChunk(data_format=ASGI, data=data, index=len(call.data_in) + 1))
            self._changes.notify()
            if message["type"] == "http.disconnect":
                return

    async def _send(self, call: Call, send: Any) -> None:
        """Pass on what the application sends, until its body has ended."""
        sent = 0
        has_begun = False

        def has_news() -> bool:
            return len(call.chunks) > sent or bool(call.outputs)

        while await self._changes.wait_for(has_news, MAX_SECONDS):
            for chunk in call.chunks[sent:]:
                sent += 1
                message = deserialize_data_format(chunk.data, chunk.data_format, None)
                has_begun = True
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    return
            if call.outputs and len(call.chunks) == sent:
                if not has_begun:
                    await _answer(send, 500, b"modal-http: internal error")
                return


async def _answer(send: Any, status: int, content: bytes) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})
