"""The RPCs of Dicts: lookup by name, and their entries. Keys and values stay as the client has serialized them.

As on Modal, two keys are equal if their serialized bytes are. Entries do not expire.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal._serialization import deserialize
from modal_proto import api_pb2

from .rpcs import Caller, Request


@dataclass(eq=False)
class Dict:
    dict_id: str
    name: str
    created_at: float = field(default_factory=time.time)
    entries: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def metadata(self) -> api_pb2.DictMetadata:
        created = api_pb2.CreationInfo(created_at=self.created_at, created_by="test")
        return api_pb2.DictMetadata(name=self.name, creation_info=created)


class DictRpcs:
    """Each method that answers an RPC runs without `await`, so no other RPC sees a Dict between two of its steps."""

    def __init__(self) -> None:
        self._dicts: dict[str, Dict] = {}  # by id
        self._numbers = count(1)

    def content(self, name: str) -> dict[object, object]:
        """The deserialized entries of the Dict with this name; none if it does not exist."""
        entries = [entry for found in self._named(name) for entry in list(found.entries.items())]
        return {deserialize(key, None): deserialize(value, None) for key, value in entries}

    async def dict_get_or_create(self, request: Request, caller: Caller) -> api_pb2.DictGetOrCreateResponse:
        name = request.deployment_name  # empty for an ephemeral Dict
        existing = self._named(name) if name else []
        if existing and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Dict '{name}' already exists")
        if not existing and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Dict '{name}' not found in environment '{request.environment_name}'")
        named = existing[0] if existing else Dict(f"di-{next(self._numbers)}", name)
        self._dicts[named.dict_id] = named
        return api_pb2.DictGetOrCreateResponse(dict_id=named.dict_id, metadata=named.metadata)

    async def dict_get_by_id(self, request: Request, caller: Caller) -> api_pb2.DictGetByIdResponse:
        found = self._find(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=found.dict_id, metadata=found.metadata)

    async def dict_heartbeat(self, request: Request, caller: Caller) -> Empty:
        return Empty()

    async def dict_get(self, request: Request, caller: Caller) -> api_pb2.DictGetResponse:
        value = self._find(request.dict_id).entries.get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def dict_update(self, request: Request, caller: Caller) -> api_pb2.DictUpdateResponse:
        """Writes the entries, with `if_not_exists` those with new keys. `created`: it has written at least one."""
        entries = self._find(request.dict_id).entries
        new = {entry.key: entry.value for entry in request.updates}
        if request.if_not_exists:
            new = {key: value for key, value in new.items() if key not in entries}
        entries.update(new)
        return api_pb2.DictUpdateResponse(created=bool(new))

    async def dict_pop(self, request: Request, caller: Caller) -> api_pb2.DictPopResponse:
        value = self._find(request.dict_id).entries.pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def dict_contains(self, request: Request, caller: Caller) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(found=request.key in self._find(request.dict_id).entries)

    async def dict_contents(self, request: Request, caller: Caller) -> AsyncIterator[api_pb2.DictEntry]:
        """The keys, the values, or both, as they were at the call."""
        for key, value in list(self._find(request.dict_id).entries.items()):
            yield api_pb2.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")

    async def dict_len(self, request: Request, caller: Caller) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=len(self._find(request.dict_id).entries))

    async def dict_clear(self, request: Request, caller: Caller) -> Empty:
        self._find(request.dict_id).entries.clear()
        return Empty()

    async def dict_delete(self, request: Request, caller: Caller) -> Empty:
        del self._dicts[self._find(request.dict_id).dict_id]
        return Empty()

    def _named(self, name: str) -> list[Dict]:
        return [candidate for candidate in self._dicts.values() if candidate.name == name]

    def _find(self, dict_id: str) -> Dict:
        if dict_id not in self._dicts:
            raise GRPCError(Status.NOT_FOUND, f"Dict {dict_id} not found")
        return self._dicts[dict_id]
