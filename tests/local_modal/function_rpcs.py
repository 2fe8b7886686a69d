"""The RPCs of functions and classes, of calls to them, and of the containers that serve the calls."""

from collections.abc import AsyncIterator
from itertools import count

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal._utils.jwt_utils import DecodedJwt
from modal_proto import api_pb2

from .app_rpcs import AppRpcs
from .calls import MAX_WAIT, App, Call, Changes, Dispatcher, Function, Input
from .definitions import function_data, handle_metadata, with_options
from .rpcs import Caller, Request
from .web import WebEndpoint

IDLE_SECONDS = 60  # Modal's scaledown_window, where the app sets none


class FunctionRpcs:
    def __init__(self, apps: AppRpcs, dispatcher: Dispatcher, changes: Changes) -> None:
        self.functions: dict[str, Function] = {}  # by id
        self.startup_failures: dict[str, api_pb2.GenericResult] = {}  # by task id
        self._apps = apps
        self._dispatcher = dispatcher
        self._changes = changes
        self._calls: dict[str, Call] = {}
        self._variants: dict[bytes, Function] = {}
        self._numbers = count(1)
        self.web_endpoints: dict[tuple[str, str], WebEndpoint] = {}  # by function id and method

    async def function_precreate(self, request: Request, caller: Caller) -> api_pb2.FunctionPrecreateResponse:
        function = self._new_function(
            self._apps.app(request.app_id),
            api_pb2.Function(
                function_name=request.function_name,
                function_type=request.function_type,
                function_schema=request.function_schema,
                method_definitions=request.method_definitions,
                supported_input_formats=request.supported_input_formats,
                supported_output_formats=request.supported_output_formats,
            ),
            request.existing_function_id,
        )
        return api_pb2.FunctionPrecreateResponse(
            function_id=function.function_id, handle_metadata=handle_metadata(function)
        )

    async def function_create(self, request: Request, caller: Caller) -> api_pb2.FunctionCreateResponse:
        ranked = request.function_data.ranked_functions  # set for a list of GPUs, the preferred one first
        definition = ranked[0].function if ranked else request.function
        function = self._new_function(self._apps.app(request.app_id), definition, request.existing_function_id)
        for name, method in definition.method_definitions.items():
            if method.webhook_config.type == api_pb2.WEBHOOK_TYPE_ASGI_APP:
                if old := self.web_endpoints.get((function.function_id, name)):
                    await old.close()
                endpoint = WebEndpoint(
                    function, name, method.webhook_config, self._dispatcher, self._changes, self._calls
                )
                self.web_endpoints[function.function_id, name] = endpoint
                function.web_urls[name] = endpoint.url
        return api_pb2.FunctionCreateResponse(
            function_id=function.function_id,
            function=definition,
            function_data=request.function_data if ranked else function_data(definition),
            handle_metadata=handle_metadata(function),
        )

    async def function_get(self, request: Request, caller: Caller) -> api_pb2.FunctionGetResponse:
        app = self._apps.deployed(request.app_name)
        if request.object_tag not in app.function_ids:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' has no function '{request.object_tag}'")
        function = self.functions[app.function_ids[request.object_tag]]
        return api_pb2.FunctionGetResponse(
            function_id=function.function_id,
            handle_metadata=handle_metadata(function),
            function=function_data(function.definition),
        )

    async def function_bind_params(self, request: Request, caller: Caller) -> api_pb2.FunctionBindParamsResponse:
        """A variant of a function: with the parameters of a class, or the options of `with_options`."""
        key = request.SerializeToString(deterministic=True)
        base = self.functions[request.function_id]
        if key not in self._variants:
            definition = with_options(base.definition, request.function_options)
            self._variants[key] = self._new_function(base.app, definition, params=request.serialized_params)
        variant = self._variants[key]
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=variant.function_id, handle_metadata=handle_metadata(variant)
        )

    async def class_create(self, request: Request, caller: Caller) -> api_pb2.ClassCreateResponse:
        class_id = request.existing_class_id or f"cs-{next(self._numbers)}"
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())

    async def class_get(self, request: Request, caller: Caller) -> api_pb2.ClassGetResponse:
        app = self._apps.deployed(request.app_name)
        if request.object_tag not in app.class_ids:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' has no class '{request.object_tag}'")
        return api_pb2.ClassGetResponse(
            class_id=app.class_ids[request.object_tag], handle_metadata=api_pb2.ClassHandleMetadata()
        )

    async def function_map(self, request: Request, caller: Caller) -> api_pb2.FunctionMapResponse:
        function = self.functions[request.function_id]
        call = Call(f"fc-{next(self._numbers)}", function, request.function_call_invocation_type)
        self._calls[call.call_id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.call_id,
            function_call_jwt=call.call_id,
            retry_policy=function.definition.retry_policy,
            sync_client_retries_enabled=True,
            pipelined_inputs=[self._put(call, item) for item in request.pipelined_inputs],
        )

    async def function_put_inputs(self, request: Request, caller: Caller) -> api_pb2.FunctionPutInputsResponse:
        call = self._call(request.function_call_id)
        return api_pb2.FunctionPutInputsResponse(inputs=[self._put(call, item) for item in request.inputs])

    async def function_finish_inputs(self, request: Request, caller: Caller) -> Empty:
        return Empty()

    async def function_retry_inputs(self, request: Request, caller: Caller) -> api_pb2.FunctionRetryInputsResponse:
        """The client's own retries. `.map()` counts its attempts and expects the count back; `.remote()` does not."""
        input_jwts = []
        for item in request.inputs:
            failed = self._dispatcher.inputs[DecodedJwt.decode_without_verification(item.input_jwt).payload["input"]]
            self._dispatcher.retry(failed, item.input, item.retry_count or failed.retry_count + 1)
            input_jwts.append(_input_jwt(failed))
        return api_pb2.FunctionRetryInputsResponse(input_jwts=input_jwts)

    async def function_get_outputs(self, request: Request, caller: Caller) -> api_pb2.FunctionGetOutputsResponse:
        call = self._call(request.function_call_id)
        last = int(request.last_entry_id.partition("-")[0] or 0)

        def new_outputs() -> dict[int, api_pb2.FunctionGetOutputsItem]:
            return {
                entry: item
                for entry, item in enumerate(call.outputs, 1)
                if entry > last
                # not the output of an earlier attempt
                and item.retry_count == self._dispatcher.inputs[item.input_id].retry_count
                and (not request.HasField("start_idx") or request.start_idx <= item.idx <= request.end_idx)
            }

        await self._changes.wait_for(new_outputs, min(request.timeout, MAX_WAIT))
        outputs = new_outputs()
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs.values(),
            last_entry_id=f"{max(outputs, default=last)}-0",
            num_unfinished_inputs=sum(input_.unfinished for input_ in call.inputs),
        )

    async def function_call_from_id(self, request: Request, caller: Caller) -> api_pb2.FunctionCallFromIdResponse:
        call = self._call(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.call_id,
            num_inputs=len(call.inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(
                app_id=call.function.app.app_id, function_id=call.function.function_id
            ),
        )

    async def function_call_get_data_out(self, request: Request, caller: Caller) -> AsyncIterator[api_pb2.DataChunk]:
        """The chunks that a generator yields. A retry counts from 1 again, and the client skips what it has."""
        chunks = self._call(request.function_call_id).chunks
        sent = 0

        def has_more() -> bool:
            return sent < len(chunks)

        while await self._changes.wait_for(has_more, MAX_WAIT):
            for chunk in chunks[sent:]:
                sent += 1
                if chunk.index > request.last_index:
                    yield chunk

    async def function_call_get_data_in(self, request: Request, caller: Caller) -> AsyncIterator[api_pb2.DataChunk]:
        """What the client of a web endpoint sends."""
        chunks = self._call(request.function_call_id).data_in
        sent = request.last_index

        def has_more() -> bool:
            return sent < len(chunks)

        while await self._changes.wait_for(has_more, MAX_WAIT):
            for chunk in chunks[sent:]:
                sent += 1
                yield chunk

    async def container_hello(self, request: Request, caller: Caller) -> Empty:
        assert caller is not None
        caller.said_hello = True
        return Empty()

    async def container_heartbeat(self, request: Request, caller: Caller) -> api_pb2.ContainerHeartbeatResponse:
        return api_pb2.ContainerHeartbeatResponse()

    async def function_get_inputs(self, request: Request, caller: Caller) -> api_pb2.FunctionGetInputsResponse:
        assert caller is not None
        function = self.functions[caller.function_id]
        settings = function.definition.autoscaler_settings
        idle_timeout = settings.scaledown_window or function.definition.task_idle_timeout_secs or IDLE_SECONDS
        next_input = await self._dispatcher.next_input(function, caller, idle_timeout)
        if next_input is None:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        item = api_pb2.FunctionGetInputsItem(
            input_id=next_input.input_id,
            input=next_input.message,
            function_call_id=next_input.call.call_id,
            function_call_invocation_type=next_input.call.invocation_type,
            retry_count=next_input.retry_count,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def function_put_outputs(self, request: Request, caller: Caller) -> Empty:
        assert caller is not None
        for item in request.outputs:
            self._dispatcher.put_output(caller, item)
        return Empty()

    async def function_call_put_data_out(self, request: Request, caller: Caller) -> Empty:
        self._call(request.function_call_id).chunks.extend(request.data_chunks)
        self._changes.notify()
        return Empty()

    async def task_result(self, request: Request, caller: Caller) -> Empty:
        """A container could not import the app, or an `enter` method failed."""
        assert caller is not None
        self.startup_failures[caller.task_id] = request.result
        return Empty()

    def _new_function(
        self, app: App, definition: api_pb2.Function, existing_id: str = "", params: bytes = b""
    ) -> Function:
        if existing_id:  # deployed again: containers with the old code get no more inputs
            for container in self.functions[existing_id].containers:
                container.end_request = container.end_request or "replaced"
        function = Function(existing_id or f"fu-{next(self._numbers)}", app, definition, params)
        self.functions[function.function_id] = function
        return function

    def _call(self, call_id: str) -> Call:
        if call_id not in self._calls:
            raise GRPCError(Status.NOT_FOUND, f"Function call {call_id} not found")
        return self._calls[call_id]

    def _put(self, call: Call, item: api_pb2.FunctionPutInputsItem) -> api_pb2.FunctionPutInputsResponseItem:
        new = self._dispatcher.add(call, item.idx, item.input)
        return api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=new.input_id, input_jwt=_input_jwt(new))


def _input_jwt(input_: Input) -> str:
    """The token of an input, from which `.map()` reads the index."""
    return DecodedJwt.encode_without_signature({"input": input_.input_id, "idx": input_.index})
