"""Maps each RPC to the method that answers it.

The service has several parts. The method `volume_commit(request, caller)` of a part answers VolumeCommit: a coroutine
for one message, an async generator for a stream. `caller` is the calling container, or None for a client. An RPC
without a method fails as UNIMPLEMENTED, with its name.
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

CONTAINER_HEADER = "x-local-task"  # added by the local service: the SDK sends no task id with an RPC

Request = Any  # the message of the RPC, as modal_proto.api_pb2 names it
Caller = Container | None


def rpc_server(
    parts: Sequence[object],
    containers: Mapping[str, Container],
    *,
    calls: list[tuple[str, Message]],
    failures: list[str],
) -> ModalClientBase:
    """The gRPC service. It records every call, and the failures of the local service itself."""
    handlers = {name: getattr(part, name) for part in parts for name in vars(type(part)) if not name.startswith("_")}
    methods = {
        rpc: _method(rpc, handlers.get(_snake_case(rpc)), containers, calls, failures)
        for rpc in ModalClientBase.__abstractmethods__
    }
    server: type[ModalClientBase] = type("Server", (ModalClientBase,), methods)
    return server()


def _method(
    rpc: str,
    handler: Callable[[Request, Caller], Any] | None,
    containers: Mapping[str, Container],
    calls: list[tuple[str, Message]],
    failures: list[str],
) -> Callable[[ModalClientBase, Stream[Any, Any]], Awaitable[None]]:
    async def method(_: ModalClientBase, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        if request is None:  # the client has disconnected
            return
        calls.append((rpc, request))
        if handler is None:
            failures.append(f"{rpc} is not implemented")
            raise GRPCError(Status.UNIMPLEMENTED, f"the local Modal has no {rpc}")
        metadata: Mapping[str, object] = stream.metadata or {}
        caller = containers.get(str(metadata.get(CONTAINER_HEADER)))
        try:
            if inspect.isasyncgenfunction(handler):
                async with aclosing(handler(request, caller)) as messages:
                    async for message in messages:
                        await stream.send_message(message)
            else:
                await stream.send_message(await handler(request, caller))
        except (GRPCError, StreamTerminatedError, ConnectionError):
            raise
        except Exception as error:
            failures.append(f"{rpc}: {traceback.format_exc()}")
            # not INTERNAL or UNKNOWN, which the client would retry
            raise GRPCError(Status.INVALID_ARGUMENT, f"the local Modal failed in {rpc}: {error!r}") from error

    return method


def _snake_case(rpc: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()
