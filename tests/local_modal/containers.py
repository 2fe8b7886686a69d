"""Containers: real `python -m modal._container_entrypoint` processes, each in a session and a folder of its own."""

import asyncio
import codecs
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .volumes import WorkingCopy

# A shell that starts the tests in the background leaves SIGINT ignored, and children inherit that.
_DEFAULT_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
INTERRUPTIBLE = [sys.executable, "-S", "-E", "-c", _DEFAULT_SIGINT]

STDOUT, STDERR = 1, 2  # modal_proto: FILE_DESCRIPTOR_STDOUT, FILE_DESCRIPTOR_STDERR


@dataclass(eq=False)
class Container:
    """One container, as a test sees it.

    `ended` is empty while it lives. Then it says why: "done" (by itself, after its inputs), "idle" (no input for long),
    "stopped" (with its app), "replaced" (by a newer deployment), "preempted", "timed out" or "crashed".
    """

    task_id: str
    function: str  # "train", or "Model.*" for a class
    function_id: str
    gpu_type: str  # as asked for, also after with_options(); "" is none
    gpu_count: int
    timeout: int
    single_use: bool
    places: int  # inputs that it takes at the same time
    folder: Path
    volumes: dict[str, WorkingCopy]  # by volume id
    input_ids: list[str] = field(default_factory=list)  # served, in order
    running: list[str] = field(default_factory=list)  # input ids
    output: str = ""  # stdout and stderr, as they came
    greeted: bool = False  # it is about to import the app
    late_input: str = ""  # the input that ran out of time
    ending: str = ""  # why it is going to end, once somebody has decided
    ended: str = ""
    exit_status: int | None = None
    pid: int = 0
    process: subprocess.Popen[bytes] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def free_places(self) -> int:
        if self.ending or self.ended or (self.single_use and self.input_ids):
            return 0
        return max(0, self.places - len(self.running))

    def start(
        self,
        environment: dict[str, str],
        *,
        on_output: Callable[[int, str], None],
        on_end: Callable[[], None],
    ) -> None:
        """Both callbacks run on the event loop that calls this, `on_end` after the last of the output."""
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

        def say(descriptor: int, text: str) -> None:
            self.output += text
            on_output(descriptor, text)

        def pump(stream: IO[bytes], descriptor: int) -> None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            with stream:
                while chunk := os.read(stream.fileno(), 65536):
                    loop.call_soon_threadsafe(say, descriptor, decoder.decode(chunk))

        def finish(status: int) -> None:
            self.exit_status = status
            on_end()
            self.gone.set()

        def follow() -> None:
            status = process.wait()
            while session(process.pid):  # what it left behind; it would hold the pipes open
                kill_session(process.pid)
                time.sleep(0.01)  # killed ones take a moment to go, and nothing tells of it
            for thread in pumps:
                thread.join()
            loop.call_soon_threadsafe(finish, status)

        pumps = [
            threading.Thread(target=pump, args=(stream, descriptor), daemon=True)
            for stream, descriptor in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        for thread in (*pumps, threading.Thread(target=follow, daemon=True)):
            thread.start()

    async def interrupt(self, grace: float) -> None:
        """What Modal does to end a container early: SIGINT to the main process alone, and SIGKILL to all later."""
        if self.process is not None and self.greeted:
            self.process.send_signal(signal.SIGINT)
        await self.wait_or_kill(grace if self.greeted else 0)

    async def wait_or_kill(self, grace: float) -> None:
        try:
            await asyncio.wait_for(self.gone.wait(), grace)
        except TimeoutError:
            self.kill()
            await self.gone.wait()

    def kill(self) -> None:
        if not self.gone.is_set():
            kill_session(self.pid)


def session(leader: int) -> list[int]:
    """The living processes of a session, as `start_new_session` makes one."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                state, _, _, number, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(number) == leader and state not in "ZX":
                    members.append(int(entry.name))
    return members


def kill_session(leader: int) -> None:
    for pid in session(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
