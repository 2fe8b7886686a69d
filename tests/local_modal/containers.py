"""Containers: real `python -m modal._container_entrypoint` processes, each in a session and a folder of its own."""

import asyncio
import codecs
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias

from modal_proto import api_pb2

from .volumes import WorkingCopy

# A shell that starts the tests in the background ignores SIGINT, and child processes inherit that.
_DEFAULT_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
INTERRUPTIBLE = [sys.executable, "-S", "-E", "-c", _DEFAULT_SIGINT]

FileDescriptor: TypeAlias = "api_pb2.FileDescriptor.ValueType"


@dataclass(eq=False)
class Container:
    """One container, as a test sees it.

    `end_reason` is empty while it runs. Then: "done" (exited after its inputs), "idle" (no input for long), "stopped"
    (with its app), "replaced" (by a newer deployment), "preempted", "timed out" or "crashed".
    """

    task_id: str
    function: str  # "train", or "Model.*" for a class
    function_id: str
    image_id: str
    gpu_type: str  # this and the next five: as requested, also by with_options(); "" without a GPU
    gpu_count: int
    cpu: float  # cores; 0 if the app requests none, as for `memory`
    memory: int  # MiB
    timeout: int
    retries: int  # of the retry policy
    nonpreemptible: bool
    single_use: bool
    max_inputs: int  # inputs at the same time
    folder: Path
    volumes: dict[str, WorkingCopy]  # by volume id
    input_ids: list[str] = field(default_factory=list)  # all inputs so far, in order
    running: list[str] = field(default_factory=list)  # input ids
    output: str = ""  # stdout and stderr, in order of arrival
    said_hello: bool = False  # it has called ContainerHello, before it imports the app
    timed_out_input: str = ""  # the id of the input that timed out
    end_request: str = ""  # the reason for which it is to end
    end_reason: str = ""
    exit_status: int | None = None
    pid: int = 0
    process: subprocess.Popen[bytes] | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def free_slots(self) -> int:
        if self.end_request or self.end_reason or (self.single_use and self.input_ids):
            return 0
        return max(0, self.max_inputs - len(self.running))

    def start(
        self,
        environment: Mapping[str, str],
        *,
        on_output: Callable[[FileDescriptor, str], None],
        on_end: Callable[[], None],
    ) -> None:
        """Both callbacks run on the current event loop, `on_end` after all output."""
        loop = asyncio.get_running_loop()
        process = subprocess.Popen(
            [*INTERRUPTIBLE, sys.executable, "-m", "modal._container_entrypoint"],
            env=environment,
            cwd=self.folder / "root",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.process, self.pid = process, process.pid

        def add_output(descriptor: FileDescriptor, text: str) -> None:
            self.output += text
            on_output(descriptor, text)

        def read_stream(stream: IO[bytes] | None, descriptor: FileDescriptor) -> None:
            assert stream is not None
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            with stream:
                while chunk := os.read(stream.fileno(), 65536):
                    loop.call_soon_threadsafe(add_output, descriptor, decoder.decode(chunk))

        def finish(status: int) -> None:
            self.exit_status = status
            on_end()
            self.exited.set()

        def wait_for_exit() -> None:
            status = process.wait()
            while session_processes(process.pid):  # its child processes, which would keep the pipes open
                kill_session(process.pid)
                time.sleep(0.01)  # a killed process takes a moment to end
            for thread in readers:
                thread.join()
            loop.call_soon_threadsafe(finish, status)

        readers = [
            threading.Thread(target=read_stream, args=(stream, descriptor), daemon=True)
            for stream, descriptor in (
                (process.stdout, api_pb2.FILE_DESCRIPTOR_STDOUT),
                (process.stderr, api_pb2.FILE_DESCRIPTOR_STDERR),
            )
        ]
        for thread in (*readers, threading.Thread(target=wait_for_exit, daemon=True)):
            thread.start()

    async def interrupt(self, grace: float) -> None:
        """End the container as Modal does: SIGINT to the main process, and after `grace` seconds SIGKILL to all."""
        if self.process is not None and self.said_hello:
            self.process.send_signal(signal.SIGINT)
        await self.wait_or_kill(grace if self.said_hello else 0)

    async def wait_or_kill(self, grace: float) -> None:
        try:
            await asyncio.wait_for(self.exited.wait(), grace)
        except TimeoutError:
            self.kill()
            await self.exited.wait()

    def kill(self) -> None:
        if not self.exited.is_set():
            kill_session(self.pid)


def session_processes(leader: int) -> list[int]:
    """The ids of the running processes of a session, which `start_new_session` created."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                state, _, _, number, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(number) == leader and state not in "ZX":
                    pids.append(int(entry.name))
    return pids


def kill_session(leader: int) -> None:
    for pid in session_processes(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
