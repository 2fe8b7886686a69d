"""The RPCs of apps: create, deploy, stop, and the logs of their containers."""

import time
from collections.abc import AsyncIterator, Callable
from itertools import count

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .calls import MAX_WAIT, App, Changes
from .containers import Container, FileDescriptor
from .rpcs import Caller, Request


class AppRpcs:
    def __init__(self, changes: Changes, *, stop: Callable[[App], None]) -> None:
        """`stop` stops an app in the background."""
        self._changes = changes
        self._stop = stop
        self._apps: dict[str, App] = {}
        self._deployed: dict[str, App] = {}  # by name
        self._numbers = count(1)

    def app(self, app_id: str) -> App:
        return self._apps[app_id]

    def deployed(self, name: str) -> App:
        if name not in self._deployed:
            raise GRPCError(Status.NOT_FOUND, f"App '{name}' not found in environment 'main'")
        return self._deployed[name]

    def log(self, app: App, container: Container, descriptor: FileDescriptor, text: str) -> None:
        item = api_pb2.TaskLogs(data=text, file_descriptor=descriptor, timestamp=time.time())
        entry = str(len(app.logs) + 1)
        app.logs.append(api_pb2.TaskLogsBatch(task_id=container.task_id, items=[item], entry_id=entry))
        self._changes.notify()

    async def client_hello(self, request: Request, caller: Caller) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse()

    async def app_create(self, request: Request, caller: Caller) -> api_pb2.AppCreateResponse:
        app = App(f"ap-{next(self._numbers)}", request.app_state)
        self._apps[app.app_id] = app
        return api_pb2.AppCreateResponse(app_id=app.app_id, app_page_url=_page_url(app))

    async def app_get_by_deployment_name(
        self, request: Request, caller: Caller
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        app = self._deployed.get(request.name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app.app_id if app else "")

    async def app_get_layout(self, request: Request, caller: Caller) -> api_pb2.AppGetLayoutResponse:
        app = self._apps[request.app_id]
        layout = api_pb2.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        return api_pb2.AppGetLayoutResponse(app_layout=layout)

    async def app_publish(self, request: Request, caller: Caller) -> api_pb2.AppPublishResponse:
        app = self._apps[request.app_id]
        app.state = request.app_state or app.state
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        if app.state == api_pb2.APP_STATE_DEPLOYED:
            self._deployed[request.name] = app
        return api_pb2.AppPublishResponse(url=_page_url(app), deployed_at=time.time())

    async def app_heartbeat(self, request: Request, caller: Caller) -> Empty:
        return Empty()

    async def app_client_disconnect(self, request: Request, caller: Caller) -> Empty:
        app = self._apps[request.app_id]
        if app.state != api_pb2.APP_STATE_DEPLOYED:
            self._stop(app)
        return Empty()

    async def app_stop(self, request: Request, caller: Caller) -> Empty:
        app = self._apps[request.app_id]
        app.state = api_pb2.APP_STATE_STOPPING
        self._stop(app)
        return Empty()

    async def app_get_logs(self, request: Request, caller: Caller) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        app = self._apps[request.app_id]
        sent = int(request.last_entry_id or 0)

        def has_more() -> bool:
            return sent < len(app.logs) or app.done

        while await self._changes.wait_for(has_more, MAX_WAIT):
            for batch in app.logs[sent:]:
                yield batch
                sent += 1
            if app.done and sent == len(app.logs):
                yield api_pb2.TaskLogsBatch(app_done=True)
                return


def _page_url(app: App) -> str:
    return f"http://127.0.0.1/{app.app_id}"
