"""LocalModal: the service on a thread of its own, and what a test asks it and does to it."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from google.protobuf.message import Message
from grpclib.server import Server
from modal_proto import api_pb2

from .app_rpcs import AppRpcs
from .calls import App, Changes, Dispatcher, Function
from .clients import Clients
from .containers import Container
from .definitions import container_arguments
from .function_rpcs import FunctionRpcs
from .object_rpcs import ObjectRpcs
from .rpcs import CONTAINER_HEADER, rpc_server
from .volume_rpcs import VolumeRpcs
from .volumes import Blocks

T = TypeVar("T")
POLL = 0.03  # seconds between two looks of `wait_for`
LONGEST_CALL = 120.0  # seconds for what a test asks the service to do


class LocalModal:
    """A Modal of one's own, for the length of a `with` block; everything that it writes lies under `folder`.

    A container finds the files that its app ships in its working folder, which stands for /root, and the Volume that
    the function mounts in the folder that the variable `mount_variable` names: nothing can be mounted at /data without
    being root. With several Volumes the variable names the first one's folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mount_variable: str = "NANOGPT_MOUNT",
        ranks_variable: str = "NANOGPT_RANKS",
        pythonpath: Sequence[Path | str] = (),
        variables: Mapping[str, str] | None = None,
        secrets: Mapping[str, dict[str, str]] | None = None,
        grace: float = 30.0,
        max_containers: int = 4,
        exit_commits: bool = False,
    ) -> None:
        """Containers import from `pythonpath` besides what was shipped, and get these `variables` besides their own.
        The variable `ranks_variable` tells how many GPUs were asked for. `secrets` are the named ones. `grace` is the
        time in seconds from SIGINT to SIGKILL. `max_containers` holds for a function that sets no limit.
        `exit_commits`: a container that ends in order commits what it has written."""
        self.folder = folder.resolve()  # /proc shows real paths
        self.calls: list[tuple[str, Message]] = []  # (RPC, request), as they came
        self.failures: list[str] = []  # RPCs that are not implemented, and mistakes of the local service itself
        self.containers: list[Container] = []  # in the order of their start
        self._mount_variable, self._ranks_variable = mount_variable, ranks_variable
        self._pythonpath = [str(path) for path in pythonpath]
        self._variables = dict(variables or {})
        self._grace = grace
        self._exit_commits = exit_commits
        self._url = ""
        self._by_task: dict[str, Container] = {}
        self._clients = Clients(self.folder)
        self._blocks = Blocks()
        changes = Changes()
        self._dispatcher = Dispatcher(
            changes, self._start, failures=self.failures, grace=grace, max_containers=max_containers
        )
        self._apps = AppRpcs(changes, stop=self._stop)
        self._objects = ObjectRpcs(dict(secrets or {}))
        self._volumes = VolumeRpcs(self.folder / "volumes", self._blocks)
        self._functions = FunctionRpcs(self._apps, self._dispatcher, changes)
        parts = [self._apps, self._objects, self._volumes, self._functions]
        self._rpcs = rpc_server(parts, self._by_task, calls=self.calls, failures=self.failures)
        self._server: Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="local-modal", daemon=True)

    def __enter__(self) -> Self:
        (self.folder / "volumes").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._await(self._open())
        return self

    def __exit__(self, *error: object) -> None:
        print(self.report())  # pytest shows it where a test failed
        self._clients.kill()
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def modal(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """The `modal` command, to its end; `env` is added to `environ()`."""
        return self.python("-m", "modal", *arguments, cwd=cwd, env=env, timeout=timeout)

    def popen_modal(
        self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """The `modal` command, running, with pipes for its text."""
        return self._clients.popen(("-m", "modal", *arguments), cwd=cwd, env=self.environ(env))

    def python(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """A Python script that uses the service, to its end."""
        return self._clients.run(arguments, cwd=cwd, env=self.environ(env), timeout=timeout)

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """For any client process: this service, and none of the user's own settings of Modal."""
        return self._clients.environ(self._url, extra or {})

    def volume(self, name: str) -> Path:
        """The folder with the committed files of a Volume. A test that makes it and puts files there creates it."""
        return self.folder / "volumes" / name

    @property
    def images(self) -> list[api_pb2.Image]:
        """The layers of images, each with its `dockerfile_commands`, in the order of their creation."""
        return list(self._objects.images.values())

    def preempt(self, container: Container, *, grace: float | None = None) -> None:
        """Ends a container as Modal does when it needs the machine, and returns when it is gone: SIGINT, and after
        `grace` seconds SIGKILL. Its inputs start again in another container, and that counts as no attempt."""
        container.ending = container.ending or "preempted"
        self._await(container.interrupt(self._grace if grace is None else grace))

    def crash(self, container: Container) -> None:
        """SIGKILL, and returns when the container is gone: a failed attempt, retried as the function's policy says."""
        container.ending = container.ending or "crashed"
        container.kill()
        self._await(container.gone.wait())

    def wait_for(self, condition: Callable[[], T], timeout: float = 30) -> T:
        """Waits until the condition holds, and returns what it returned; no longer than anything runs."""
        deadline = time.monotonic() + timeout
        while True:
            over = self._clients.all_ended() and all(container.ended for container in self.containers)
            if result := condition():
                return result
            if over or time.monotonic() > deadline:
                reason = "nothing runs any more" if over else f"not within {timeout} s"
                raise TimeoutError(f"{reason}\n{self._clients.last_words()}\n{self.report()}")
            time.sleep(POLL)  # a condition is any function: there is nothing to be woken by

    def count(self, rpc: str) -> int:
        """How often an RPC was called."""
        return sum(name == rpc for name, _ in self.calls)

    def report(self) -> str:
        """What went on, for the message of a test that fails."""
        lines = ["--- local Modal", *self.failures]
        for one in self.containers:
            state = f"{one.ended}, exit status {one.exit_status}" if one.ended else "alive"
            lines.append(f"--- container of {one.function}, pid {one.pid}, inputs {one.input_ids}, {state}")
            lines.append(one.output)
        return "\n".join(lines)

    async def _open(self) -> None:
        await self._blocks.open()
        # IPPROTO_TCP spelt out, for asyncio turns Nagle's delay off (40 ms a call) only where it sees it
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self._url = "http://{}:{}".format(*listener.getsockname())
        self._server = Server([self._rpcs])
        await self._server.start(sock=listener)

    async def _close(self) -> None:
        for container in self.containers:
            container.ending = container.ending or "stopped"
            container.kill()
        for container in self.containers:
            await container.gone.wait()
        await self._blocks.close()
        if self._server is not None:
            self._server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 5)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _start(self, function: Function) -> Container:
        definition = function.definition
        number = len(self.containers) + 1
        folder = self.folder / f"c{number}"  # short, for the paths of sockets
        for name in ("root", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        self._objects.place_files(definition, folder)
        container = Container(
            task_id=f"ta-{number:026}",  # the client knows a remote traceback by ids of this form
            function=definition.function_name,
            function_id=function.function_id,
            gpu_type=definition.resources.gpu_config.gpu_type,
            gpu_count=definition.resources.gpu_config.count,
            timeout=definition.timeout_secs,
            single_use=definition.single_use_containers,
            places=max(1, definition.max_concurrent_inputs),
            folder=folder,
            volumes={mount.volume_id: self._volumes.mount(mount, folder) for mount in definition.volume_mounts},
        )
        self.containers.append(container)
        self._by_task[container.task_id] = container
        arguments = container_arguments(
            function,
            container.task_id,
            functions=self._functions.functions,
            volumes=self._volumes.all_metadata(),
            exit_commits=self._exit_commits,
        )
        (folder / "arguments").write_bytes(arguments.SerializeToString())
        container.start(
            self._container_environ(container, definition),
            on_output=lambda descriptor, text: self._apps.log(function.app, container, descriptor, text),
            on_end=lambda: self._dispatcher.ended(
                function, container, self._functions.startup_failures.get(container.task_id)
            ),
        )
        return container

    def _container_environ(self, container: Container, definition: api_pb2.Function) -> dict[str, str]:
        mounted = [str(copy.folder) for copy in container.volumes.values()]
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LANG": "C.UTF-8",
            **self._variables,
            **self._objects.environment(definition),
            "HOME": str(container.folder / "home"),
            "TMPDIR": str(container.folder / "tmp"),
            "PYTHONPATH": os.pathsep.join([str(container.folder / "root"), *self._pythonpath]),
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": self._url,
            "MODAL_TASK_ID": container.task_id,
            "MODAL_IMAGE_ID": definition.image_id,
            "MODAL_ENVIRONMENT": "main",
            "MODAL_OVERRIDE_HEADERS": f"{CONTAINER_HEADER}:{container.task_id}",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(container.folder / "arguments"),
            **({self._mount_variable: mounted[0]} if mounted else {}),
            self._ranks_variable: str(max(1, container.gpu_count)),
        }

    def _stop(self, app: App) -> None:
        def living() -> list[Container]:
            functions = self._functions.functions
            return [one for one in self.containers if not one.ended and functions[one.function_id].app is app]

        self._dispatcher.run(self._dispatcher.stop(app, living))

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LONGEST_CALL)
