"""Apps, functions, calls and inputs, and the dispatch of inputs to containers: queues, attempts, retries, timeouts.

Who retries a failed attempt in SDK 1.6: the client for `.remote()` and `.map()`, which send the input again with
FunctionRetryInputs; the service for `.spawn()` and generators. A preemption does not count as an attempt.
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from modal_proto import api_pb2

from .containers import Container

Result = api_pb2.GenericResult
MAX_WAIT = 50.0  # seconds; a stream or a poll without news ends after it, and the client calls again


class Changes:
    """Lets coroutines wait for a condition. Code that changes the state calls `notify`."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait_for(self, condition: Callable[[], object], timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._next.wait()
        except TimeoutError:
            return False
        return True


@dataclass(eq=False)
class App:
    app_id: str
    state: "api_pb2.AppState.ValueType"
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    logs: list[api_pb2.TaskLogsBatch] = field(default_factory=list)
    stopping: bool = False
    done: bool = False


@dataclass(eq=False)
class Function:
    """A function, or a variant of one with the parameters of a class or the options of `with_options`."""

    function_id: str
    app: App
    definition: api_pb2.Function
    params: bytes = b""
    web_urls: dict[str, str] = field(default_factory=dict)  # by method
    queue: deque["Input"] = field(default_factory=deque)
    containers: list[Container] = field(default_factory=list)  # running ones


@dataclass(eq=False)
class Call:
    call_id: str
    function: Function
    invocation_type: "api_pb2.FunctionCallInvocationType.ValueType"
    inputs: list["Input"] = field(default_factory=list)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    chunks: list[api_pb2.DataChunk] = field(default_factory=list)  # yielded by a generator
    data_in: list[api_pb2.DataChunk] = field(default_factory=list)  # what the client of a web endpoint sends

    @property
    def client_retries(self) -> bool:
        return self.invocation_type == api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC


@dataclass(eq=False)
class Input:
    input_id: str
    call: Call
    index: int
    message: api_pb2.FunctionInput
    retry_count: int = 0
    unfinished: bool = True
    timer: asyncio.TimerHandle | None = None


class Dispatcher:
    """Starts containers for queued inputs, assigns inputs to them, and handles the result of each attempt."""

    def __init__(
        self,
        changes: Changes,
        start: Callable[[Function], Container],
        *,
        failures: list[str],
        grace: float,
        max_containers: int,
    ) -> None:
        self.inputs: dict[str, Input] = {}
        self._failures = failures
        self._changes = changes
        self._start = start
        self._grace = grace
        self._max_containers = max_containers
        self._tasks: set[asyncio.Task[None]] = set()

    def busy_apps(self) -> set[App]:
        """The apps with inputs that are queued, running or waiting for a retry by the service."""
        return {input_.call.function.app for input_ in list(self.inputs.values()) if input_.unfinished}

    def add(self, call: Call, index: int, message: api_pb2.FunctionInput) -> Input:
        new = Input(f"in-{len(self.inputs) + 1}", call, index, message)
        self.inputs[new.input_id] = new
        call.inputs.append(new)
        self._queue(new)
        return new

    def retry(self, failed: Input, message: api_pb2.FunctionInput, retry_count: int) -> None:
        failed.message, failed.retry_count, failed.unfinished = message, retry_count, True
        self._queue(failed)

    async def next_input(self, function: Function, container: Container, idle_timeout: float) -> Input | None:
        """None tells the container to exit, because of `idle_timeout` seconds without an input, or another reason."""
        await self._changes.wait_for(lambda: function.queue or container.end_request, idle_timeout)
        if container.end_request or not function.queue:
            container.end_request = container.end_request or "idle"
            return None
        next_input = function.queue.popleft()
        container.running.append(next_input.input_id)
        container.input_ids.append(next_input.input_id)
        if container.timeout:
            loop = asyncio.get_running_loop()
            next_input.timer = loop.call_later(container.timeout, self._time_out, container, next_input)
        self._changes.notify()
        return next_input

    def put_output(self, container: Container, item: api_pb2.FunctionPutOutputsItem) -> None:
        """Record a result, unless the container is being preempted or has timed out."""
        if item.input_id in container.running and container.end_request in ("", "stopped", "replaced"):
            self._finish_input(self._release(container, item.input_id), item.result, item.data_format, container)

    def on_container_exit(self, function: Function, container: Container, startup_failure: Result | None) -> None:
        """Finish the inputs that the container was running, and starts another one if inputs are queued."""
        function.containers.remove(container)
        unfinished = [self._release(container, input_id) for input_id in list(container.running)]
        container.end_reason = container.end_request or ("crashed" if unfinished or not container.input_ids else "done")
        status = f"exit status {container.exit_status}"
        for input_ in unfinished:
            if input_.input_id == container.timed_out_input:
                text = f"Task's current input {input_.input_id} hit its timeout of {container.timeout}s"
                self._finish_input(
                    input_, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=text), container=container
                )
            elif container.end_reason in ("preempted", "timed out"):
                function.queue.appendleft(input_)
            elif container.end_reason == "stopped":
                self._finish_input(input_, Result(status=Result.GENERIC_STATUS_TERMINATED), container=container)
            else:
                text = f"Container {container.task_id} crashed: {status}"
                self._finish_input(
                    input_, Result(status=Result.GENERIC_STATUS_FAILURE, exception=text), container=container
                )
        if container.end_reason == "crashed" and not container.input_ids:
            text = f"Container {container.task_id} failed to start: {status}"
            result = startup_failure or Result(status=Result.GENERIC_STATUS_FAILURE, exception=text)
            for _ in range(min(container.max_inputs, len(function.queue))):
                self._finish_input(function.queue.popleft(), result, container=container)
        self._start_containers(function)
        self._changes.notify()

    async def stop(self, app: App, running_containers: Callable[[], list[Container]]) -> None:
        """Stops the app: idle containers get no more inputs, busy ones are interrupted. A detached app first finishes
        all of its inputs."""
        while app.state == api_pb2.APP_STATE_DETACHED and app in self.busy_apps():
            await self._changes.wait_for(lambda: app not in self.busy_apps(), MAX_WAIT)
        app.stopping = True

        async def end(container: Container) -> None:
            is_exiting = container.single_use and container.input_ids and not container.running
            container.end_request = container.end_request or ("" if is_exiting else "stopped")
            self._changes.notify()
            if container.running or not container.input_ids:
                await container.interrupt(self._grace)
            else:
                await container.wait_or_kill(self._grace)

        await asyncio.gather(*(end(container) for container in running_containers()))
        app.done = True
        self._changes.notify()

    def run(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run in the background. An exception is recorded: it is a bug of the local service."""

        async def guarded() -> None:
            try:
                await coroutine
            except Exception:
                self._failures.append(traceback.format_exc())

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _queue(self, input_: Input) -> None:
        input_.call.function.queue.append(input_)
        self._start_containers(input_.call.function)
        self._changes.notify()

    def _start_containers(self, function: Function) -> None:
        if function.app.stopping:
            while function.queue:
                self._finish_input(function.queue.popleft(), Result(status=Result.GENERIC_STATUS_TERMINATED))
            return
        settings = function.definition.autoscaler_settings
        limit = settings.max_containers or function.definition.concurrency_limit or self._max_containers
        while len(function.containers) < limit and len(function.queue) > sum(
            container.free_slots for container in function.containers
        ):
            function.containers.append(self._start(function))

    def _release(self, container: Container, input_id: str) -> Input:
        container.running.remove(input_id)
        released = self.inputs[input_id]
        if released.timer is not None:
            released.timer.cancel()
        return released

    def _finish_input(
        self,
        input_: Input,
        result: Result,
        data_format: "api_pb2.DataFormat.ValueType" = api_pb2.DATA_FORMAT_UNSPECIFIED,
        container: Container | None = None,
    ) -> None:
        final = (Result.GENERIC_STATUS_SUCCESS, Result.GENERIC_STATUS_TERMINATED)
        policy = input_.call.function.definition.retry_policy
        if result.status not in final and not input_.call.client_retries and input_.retry_count < policy.retries:
            delay = policy.initial_delay_ms / 1000 * policy.backoff_coefficient**input_.retry_count
            input_.retry_count += 1
            asyncio.get_running_loop().call_later(delay, self._queue, input_)
            return
        input_.unfinished = False
        input_.call.outputs.append(
            api_pb2.FunctionGetOutputsItem(
                result=result,
                idx=input_.index,
                input_id=input_.input_id,
                data_format=data_format,
                task_id=container.task_id if container else "",
                retry_count=input_.retry_count,
            )
        )
        self._changes.notify()

    def _time_out(self, container: Container, timed_out: Input) -> None:
        if timed_out.input_id in container.running and not container.end_request:
            container.end_request, container.timed_out_input = "timed out", timed_out.input_id
            self.run(container.interrupt(self._grace))
