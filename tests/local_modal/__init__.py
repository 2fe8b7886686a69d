"""A local Modal: a service on loopback for the real `modal` client, with real containers, for tests.

    with LocalModal(tmp_path) as service:
        done = service.modal("run", "app.py::train", "--steps", "3", cwd=tmp_path)

No account, network, docker or root: it drives the `modal` command of the installed SDK and its container entrypoint as
processes of this machine. What only the real service knows it cannot prove: GPUs, image builds, schedules, web urls.
"""

from .containers import Container
from .service import LocalModal

__all__ = ["Container", "LocalModal"]
