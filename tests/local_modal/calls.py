"""Apps, functions, calls and inputs, and how an input finds a container: queue, attempts, retries, time-outs.

Who retries a failed attempt in SDK 1.6: the client for `.remote()` and `.map()`, which send the input again with
FunctionRetryInputs; the service for `.spawn()` and generators. A preempted input counts as no attempt.
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from modal_proto import api_pb2

from .containers import Container

Result = api_pb2.GenericResult
LONGEST_WAIT = 50.0  # seconds; a stream or a poll that has nothing to say ends then, and the client asks again


class Changes:
    """Lets coroutines wait for a condition; whoever changes something announces it."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
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
    queue: deque["Input"] = field(default_factory=deque)
    containers: list[Container] = field(default_factory=list)  # those that live


@dataclass(eq=False)
class Call:
    call_id: str
    function: Function
    invocation_type: "api_pb2.FunctionCallInvocationType.ValueType"
    inputs: list["Input"] = field(default_factory=list)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    chunks: list[api_pb2.DataChunk] = field(default_factory=list)  # what a generator has yielded

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
    """Starts containers as the queues need them, hands out inputs, and settles what becomes of each attempt."""

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

    def add(self, call: Call, index: int, message: api_pb2.FunctionInput) -> Input:
        added = Input(f"in-{len(self.inputs) + 1}", call, index, message)
        self.inputs[added.input_id] = added
        call.inputs.append(added)
        self._queue(added)
        return added

    def retry(self, again: Input, message: api_pb2.FunctionInput, retry_count: int) -> None:
        again.message, again.retry_count, again.unfinished = message, retry_count, True
        self._queue(again)

    async def next_input(self, function: Function, container: Container, patience: float) -> Input | None:
        """None is the end: the container is to go, for `patience` seconds without an input or another reason."""
        await self._changes.wait_for(lambda: function.queue or container.ending, patience)
        if container.ending or not function.queue:
            container.ending = container.ending or "idle"
            return None
        taken = function.queue.popleft()
        container.running.append(taken.input_id)
        container.input_ids.append(taken.input_id)
        if container.timeout:
            loop = asyncio.get_running_loop()
            taken.timer = loop.call_later(container.timeout, self._time_out, container, taken)
        self._changes.announce()
        return taken

    def put_output(self, container: Container, item: api_pb2.FunctionPutOutputsItem) -> None:
        """The output of a container that is being preempted or has run out of time comes too late."""
        if item.input_id in container.running and container.ending in ("", "stopped", "replaced"):
            self._settle(self._release(container, item.input_id), item.result, item.data_format, container)

    def ended(self, function: Function, container: Container, startup_failure: Result | None) -> None:
        """Settles what a container leaves behind, and starts another one where inputs wait."""
        function.containers.remove(container)
        left = [self._release(container, input_id) for input_id in list(container.running)]
        container.ended = container.ending or ("crashed" if left or not container.input_ids else "done")
        status = f"exit status {container.exit_status}"
        for one in left:
            if one.input_id == container.late_input:
                text = f"Task's current input {one.input_id} hit its timeout of {container.timeout}s"
                self._settle(one, Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=text), container=container)
            elif container.ended in ("preempted", "timed out"):
                function.queue.appendleft(one)
            elif container.ended == "stopped":
                self._settle(one, Result(status=Result.GENERIC_STATUS_TERMINATED), container=container)
            else:
                text = f"Container {container.task_id} crashed: {status}"
                self._settle(one, Result(status=Result.GENERIC_STATUS_FAILURE, exception=text), container=container)
        if container.ended == "crashed" and not container.input_ids:
            text = f"Container {container.task_id} failed to start: {status}"
            result = startup_failure or Result(status=Result.GENERIC_STATUS_FAILURE, exception=text)
            for _ in range(min(container.places, len(function.queue))):
                self._settle(function.queue.popleft(), result, container=container)
        self._staff(function)
        self._changes.announce()

    async def stop(self, app: App, living: Callable[[], list[Container]]) -> None:
        """Ends the app: idle containers are told that there is nothing more, busy ones are interrupted. A detached
        app finishes what it has begun before that."""

        def busy() -> bool:
            return any(one.unfinished for one in self.inputs.values() if one.call.function.app is app)

        while app.state == api_pb2.APP_STATE_DETACHED and busy():
            await self._changes.wait_for(lambda: not busy(), LONGEST_WAIT)
        app.stopping = True

        async def end(container: Container) -> None:
            leaving = container.single_use and container.input_ids and not container.running
            container.ending = container.ending or ("" if leaving else "stopped")
            self._changes.announce()
            if container.running or not container.input_ids:
                await container.interrupt(self._grace)
            else:
                await container.wait_or_kill(self._grace)

        await asyncio.gather(*(end(container) for container in living()))
        app.done = True
        self._changes.announce()

    def run(self, coroutine: Coroutine[None, None, None]) -> None:
        """In the background; a failure is kept, for it is a mistake of the local service."""

        async def guarded() -> None:
            try:
                await coroutine
            except Exception:
                self._failures.append(traceback.format_exc())

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _queue(self, one: Input) -> None:
        one.call.function.queue.append(one)
        self._staff(one.call.function)
        self._changes.announce()

    def _staff(self, function: Function) -> None:
        if function.app.stopping:
            function.queue.clear()
            return
        settings = function.definition.autoscaler_settings
        limit = settings.max_containers or function.definition.concurrency_limit or self._max_containers
        while len(function.containers) < limit and len(function.queue) > sum(
            container.free_places for container in function.containers
        ):
            function.containers.append(self._start(function))

    def _release(self, container: Container, input_id: str) -> Input:
        container.running.remove(input_id)
        released = self.inputs[input_id]
        if released.timer is not None:
            released.timer.cancel()
        return released

    def _settle(
        self,
        one: Input,
        result: Result,
        data_format: "api_pb2.DataFormat.ValueType" = api_pb2.DATA_FORMAT_UNSPECIFIED,
        container: Container | None = None,
    ) -> None:
        final = (Result.GENERIC_STATUS_SUCCESS, Result.GENERIC_STATUS_TERMINATED)
        policy = one.call.function.definition.retry_policy
        if result.status not in final and not one.call.client_retries and one.retry_count < policy.retries:
            delay = policy.initial_delay_ms / 1000 * policy.backoff_coefficient**one.retry_count
            one.retry_count += 1
            asyncio.get_running_loop().call_later(delay, self._queue, one)
            return
        one.unfinished = False
        one.call.outputs.append(
            api_pb2.FunctionGetOutputsItem(
                result=result,
                idx=one.index,
                input_id=one.input_id,
                data_format=data_format,
                task_id=container.task_id if container else "",
                retry_count=one.retry_count,
            )
        )
        self._changes.announce()

    def _time_out(self, container: Container, late: Input) -> None:
        if late.input_id in container.running and not container.ending:
            container.ending, container.late_input = "timed out", late.input_id
            self.run(container.interrupt(self._grace))
