"""Clients: processes of the `modal` command and of Python scripts, configured for the local service."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .containers import INTERRUPTIBLE, kill_session


class Clients:
    def __init__(self, folder: Path) -> None:
        """Their HOME and their temporary files are below `folder`."""
        self._home = folder / "home"
        self._temporary = folder / "tmp"
        self._processes: list[subprocess.Popen[str]] = []

    def environ(self, url: str, extra: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        return {
            **inherited,
            "HOME": str(self._home),
            "TMPDIR": str(self._temporary),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "COLUMNS": "200",  # wide enough that the client does not wrap lines
            "MODAL_SERVER_URL": url,
            "MODAL_TOKEN_ID": "ak-local",
            "MODAL_TOKEN_SECRET": "as-local",
            "MODAL_CONFIG_PATH": str(self._home / ".modal.toml"),
            **extra,
        }

    def popen(
        self, arguments: tuple[str | Path, ...], *, cwd: Path | None, env: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        for folder in (self._home, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [*INTERRUPTIBLE, sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def run(
        self, arguments: tuple[str | Path, ...], *, cwd: Path | None, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        process = self.popen(arguments, cwd=cwd, env=env)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_session(process.pid)
            stdout, stderr = process.communicate()
            command = " ".join(map(str, arguments))
            raise TimeoutError(f"not finished within {timeout} s: python {command}\n{stdout}\n{stderr}") from None
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def have_all_exited(self) -> bool:
        return all(process.poll() is not None for process in self._processes)

    def unread_output(self) -> str:
        """The output of clients that have exited, where no test has read it."""
        exited = [process for process in self._processes if process.poll() is not None]
        return "\n".join(
            output
            for process in exited
            if process.stdout and not process.stdout.closed
            for output in process.communicate()
        )

    def kill(self) -> None:
        for process in self._processes:
            kill_session(process.pid)
            process.communicate()
