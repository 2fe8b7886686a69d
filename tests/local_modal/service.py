"""LocalModal: the service, which runs on a thread of its own, and the methods that tests use."""

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
from .dict_rpcs import DictRpcs
from .function_rpcs import FunctionRpcs
from .object_rpcs import ObjectRpcs
from .rpcs import CONTAINER_HEADER, rpc_server
from .volume_rpcs import VolumeRpcs
from .volumes import Blocks

T = TypeVar("T")
POLL_INTERVAL = 0.03  # seconds between two checks of `wait_for`
MAX_SERVICE_CALL = 120.0  # seconds for a call from a test to the service's thread


class LocalModal:
    """The local service, for the length of a `with` block; all that it writes is below `folder`.

    The current folder of a container stands for /root and has the files that its app ships. Mounting at /data needs
    root, so the environment variable `mount_variable` has the folder of the Volume that the function mounts; with
    several Volumes, that of the first container.
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
        """Containers also import from `pythonpath`, and also get the environment `variables`. The variable
        `ranks_variable` has the number of GPUs that were requested. `secrets`: those stored under a name. `grace`: the
        time from SIGINT to SIGKILL, in seconds. `max_containers`: for a function without a limit of its own.
        `exit_commits`: a container that exits normally commits its Volumes."""
        self.folder = folder.resolve()  # /proc shows real paths
        self.calls: list[tuple[str, Message]] = []  # (RPC, request), in order
        self.failures: list[str] = []  # RPCs that are not implemented, and bugs of the local service
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
        self._dicts = DictRpcs()
        self._functions = FunctionRpcs(self._apps, self._dispatcher, changes)
        parts = [self._apps, self._objects, self._volumes, self._dicts, self._functions]
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
        print(self.report())  # pytest shows it if the test fails
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
        """Run the `modal` command until it exits; `env` is added to `environ()`."""
        return self.python("-m", "modal", *arguments, cwd=cwd, env=env, timeout=timeout)

    def popen_modal(
        self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the `modal` command, with pipes for its output."""
        return self._clients.popen(("-m", "modal", *arguments), cwd=cwd, env=self.environ(env))

    def python(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python script that uses the service until it exits."""
        return self._clients.run(arguments, cwd=cwd, env=self.environ(env), timeout=timeout)

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a client process: this service's address, and none of the user's Modal settings."""
        return self._clients.environ(self._url, extra or {})

    def volume(self, name: str) -> Path:
        """The folder with the committed files of a Volume. A test may create the Volume by creating the folder."""
        return self.folder / "volumes" / name

    def dict(self, name: str) -> dict[object, object]:
        """A copy of the content of a Dict, deserialized; empty if no client or container has created it."""
        return self._dicts.content(name)

    @property
    def images(self) -> list[api_pb2.Image]:
        """The layers of images, each with its `dockerfile_commands`, in the order of their creation."""
        return list(self._objects.images.values())

    @property
    def web_urls(self) -> list[str]:
        """The URLs of all web endpoints, in the order of their creation."""
        return [endpoint.url for endpoint in self._functions.web_endpoints.values()]

    def image_of(self, container: Container) -> str:
        """The Dockerfile commands of the container's image, one a line, after those of the images it is based on. They
        name the packages that the app installs by name, not those in a file that the build copies."""
        return "\n".join(self._objects.dockerfile_commands(container.image_id))

    def preempt(self, container: Container, *, grace: float | None = None) -> None:
        """Preempt a container and wait until it has exited: SIGINT, and after `grace` seconds SIGKILL. Its inputs
        start again in another container, which does not count as a retry."""
        assert not container.nonpreemptible, f"the container of {container.function} is not preemptible"
        container.end_request = container.end_request or "preempted"
        self._await(container.interrupt(self._grace if grace is None else grace))

    def crash(self, container: Container) -> None:
        """SIGKILL a container and wait until it has exited: a failed attempt, which the retry policy applies to."""
        container.end_request = container.end_request or "crashed"
        container.kill()
        self._await(container.exited.wait())

    def wait_for(self, condition: Callable[[], T], timeout: float = 30) -> T:
        """Wait until the condition is true and return its value. `TimeoutError` also once all processes have exited
        and no input waits for a retry."""
        deadline = time.monotonic() + timeout
        while True:
            all_exited = (
                self._clients.have_all_exited()
                and not self._dispatcher.busy_apps()
                and all(container.end_reason for container in self.containers)
            )
            if result := condition():
                return result
            if all_exited or time.monotonic() > deadline:
                reason = "all processes have exited" if all_exited else f"not within {timeout} s"
                raise TimeoutError(f"{reason}\n{self._clients.unread_output()}\n{self.report()}")
            time.sleep(POLL_INTERVAL)  # a condition is any function, so it can only be polled

    def count(self, rpc: str) -> int:
        """The number of calls of an RPC."""
        return sum(name == rpc for name, _ in self.calls)

    def report(self) -> str:
        """The failures, and the state and output of each container, for the message of a failed test."""
        lines = ["--- local Modal", *self.failures]
        for container in self.containers:
            state = (
                f"{container.end_reason}, exit status {container.exit_status}" if container.end_reason else "running"
            )
            lines.append(
                f"--- container of {container.function}, pid {container.pid}, inputs {container.input_ids}, {state}"
            )
            lines.append(container.output)
        return "\n".join(lines)

    async def _open(self) -> None:
        await self._blocks.open()
        # explicit IPPROTO_TCP: without it asyncio does not set TCP_NODELAY, and each call takes 40 ms longer
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self._url = "http://{}:{}".format(*listener.getsockname())
        self._server = Server([self._rpcs])
        await self._server.start(sock=listener)

    async def _close(self) -> None:
        for container in self.containers:
            container.end_request = container.end_request or "stopped"
            container.kill()
        for container in self.containers:
            await container.exited.wait()
        await self._blocks.close()
        for endpoint in self._functions.web_endpoints.values():
            await endpoint.close()
        if self._server is not None:
            self._server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 5)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, function: Function) -> Container:
        definition = function.definition
        number = len(self.containers) + 1
        folder = self.folder / f"c{number}"  # short: the path of a Unix socket has at most 108 characters
        for name in ("root", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        self._objects.place_files(definition, folder)
        container = Container(
            task_id=f"ta-{number:026}",  # the client recognises a remote traceback by ids of this form
            function=definition.function_name,
            function_id=function.function_id,
            image_id=definition.image_id,
            gpu_type=definition.resources.gpu_config.gpu_type,
            gpu_count=definition.resources.gpu_config.count,
            cpu=definition.resources.milli_cpu / 1000,
            memory=definition.resources.memory_mb,
            timeout=definition.timeout_secs,
            retries=definition.retry_policy.retries,
            nonpreemptible=definition.scheduler_placement.nonpreemptible,
            single_use=definition.single_use_containers,
            max_inputs=max(1, definition.max_concurrent_inputs),
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
            on_end=lambda: self._dispatcher.on_container_exit(
                function, container, self._functions.startup_failures.get(container.task_id)
            ),
        )
        return container

    def _container_environ(self, container: Container, definition: api_pb2.Function) -> Mapping[str, str]:
        mount_dirs = [str(copy.folder) for copy in container.volumes.values()]
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LANG": "C.UTF-8",
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
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
            **({self._mount_variable: mount_dirs[0]} if mount_dirs else {}),
            self._ranks_variable: str(max(1, container.gpu_count)),
        }

    def _stop(self, app: App) -> None:
        def running_containers() -> list[Container]:
            functions = self._functions.functions
            return [
                container
                for container in self.containers
                if not container.end_reason and functions[container.function_id].app is app
            ]

        self._dispatcher.run(self._dispatcher.stop(app, running_containers))

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(MAX_SERVICE_CALL)
