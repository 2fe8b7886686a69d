"""A local emulator of Modal's servers, for tests: the real `modal` client talks to it on the loopback interface.

    with LocalModal(tmp_path) as service:
        done = service.modal("run", "app.py::train", "--steps", "3", cwd=tmp_path)

It needs no account, network, docker or root. Clients are processes of the installed SDK's `modal` command, containers
are processes of its container entrypoint. It cannot emulate GPUs, image builds, schedules and web URLs.
"""

from .containers import Container
from .service import LocalModal

__all__ = ["Container", "LocalModal"]
