"""From RPCs to methods: who answers a call, and what becomes of one that nobody answers.

The service is made of parts. A part's method `volume_commit(request, caller)` answers VolumeCommit: a coroutine for one
message, an async generator for a stream. `caller` is the container that calls, and None for a client outside. Any
other RPC fails as UNIMPLEMENTED, with its name.
"""

import inspect
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream
from modal_proto.api_grpc import ModalClientBase

from .containers import Container

CONTAINER_HEADER = "x-local-task"  # containers send no task id of their own

Request = Any  # the message of the RPC, as modal_proto.api_pb2 names it
Caller = Container | None


def rpc_server(
    parts: Sequence[object],
    containers: Mapping[str, Container],
    *,
    calls: list[tuple[str, Message]],
    failures: list[str],
) -> ModalClientBase:
    """What grpclib serves. Every call is recorded; so is a failure of the local service itself."""
    answers = {name: getattr(part, name) for part in parts for name in vars(type(part)) if not name.startswith("_")}
    methods = {
        rpc: _method(rpc, answers.get(_snake_case(rpc)), containers, calls, failures)
        for rpc in ModalClientBase.__abstractmethods__
    }
    server: type[ModalClientBase] = type("Server", (ModalClientBase,), methods)
    return server()


def _method(
    rpc: str,
    answer: Callable[[Request, Caller], Any] | None,
    containers: Mapping[str, Container],
    calls: list[tuple[str, Message]],
    failures: list[str],
) -> Callable[[ModalClientBase, Stream[Any, Any]], Awaitable[None]]:
    async def method(_: ModalClientBase, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        if request is None:  # the client has left
            return
        calls.append((rpc, request))
        if answer is None:
            failures.append(f"{rpc} is not implemented")
            raise GRPCError(Status.UNIMPLEMENTED, f"the local Modal has no {rpc}")
        caller = containers.get(str((stream.metadata or {}).get(CONTAINER_HEADER)))
        try:
            if inspect.isasyncgenfunction(answer):
                async with aclosing(answer(request, caller)) as messages:
                    async for message in messages:
                        await stream.send_message(message)
            else:
                await stream.send_message(await answer(request, caller))
        except (GRPCError, StreamTerminatedError, ConnectionError):
            raise
        except Exception as error:
            failures.append(f"{rpc}: {traceback.format_exc()}")
            # not INTERNAL or UNKNOWN: the client would try those again and again
            raise GRPCError(Status.INVALID_ARGUMENT, f"the local Modal failed in {rpc}: {error!r}") from error

    return method


def _snake_case(rpc: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()
