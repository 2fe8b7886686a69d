"""The RPCs of Volumes: lookup by name, listing, files in blocks, and commit and reload of a container's copy."""

import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .containers import session_processes
from .rpcs import Caller, Request
from .volumes import BLOCK_SIZE, Blocks, Volume, WorkingCopy, paths_in_use


class VolumeRpcs:
    def __init__(self, folder: Path, blocks: Blocks) -> None:
        self._folder = folder
        self._blocks = blocks
        self._volumes: dict[str, Volume] = {}  # by id
        self._numbers = count(1)

    def find(self, volume_id: str) -> Volume:
        if volume_id not in self._volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id} not found")
        return self._volumes[volume_id]

    def _working_copy(self, volume_id: str, caller: Caller) -> WorkingCopy:
        if caller is None or volume_id not in caller.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id} is not mounted in this container")
        return caller.volumes[volume_id]

    async def volume_get_or_create(self, request: Request, caller: Caller) -> api_pb2.VolumeGetOrCreateResponse:
        if request.version == api_pb2.VOLUME_FS_VERSION_V1:
            raise GRPCError(Status.INVALID_ARGUMENT, "the local Modal has Volumes of version 2 only")
        name = request.deployment_name or f"ephemeral{next(self._numbers)}"
        folder = self._folder / name
        existing = [volume for volume in self._volumes.values() if volume.name == name]
        exists = bool(existing) or folder.is_dir()  # a test may have put files there
        if exists and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{name}' already exists")
        if not exists and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{name}' not found in environment '{request.environment_name}'")
        volume = existing[0] if existing else Volume(f"vo-{next(self._numbers)}", name, folder)
        self._volumes[volume.volume_id] = volume
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.volume_id, version=api_pb2.VOLUME_FS_VERSION_V2, metadata=self.metadata(volume)
        )

    async def volume_get_by_id(self, request: Request, caller: Caller) -> api_pb2.VolumeGetByIdResponse:
        volume = self.find(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.volume_id, metadata=self.metadata(volume))

    async def volume_list(self, request: Request, caller: Caller) -> api_pb2.VolumeListResponse:
        return api_pb2.VolumeListResponse(
            items=[
                api_pb2.VolumeListItem(label=v.name, volume_id=v.volume_id, metadata=self.metadata(v))
                for v in self._volumes.values()
            ]
        )

    async def volume_heartbeat(self, request: Request, caller: Caller) -> Empty:
        return Empty()

    async def volume_list_files2(
        self, request: Request, caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        volume = self.find(request.volume_id)
        entries = []
        for path in volume.entries(request.path, recursive=request.recursive):
            kind = api_pb2.FileEntry.DIRECTORY if path.is_dir() else api_pb2.FileEntry.FILE
            if path.is_symlink():
                kind = api_pb2.FileEntry.SYMLINK
            stat = path.lstat()
            size = stat.st_size if kind == api_pb2.FileEntry.FILE else 0
            name = path.relative_to(volume.folder).as_posix()
            entries.append(api_pb2.FileEntry(path=name, type=kind, mtime=int(stat.st_mtime), size=size))
        yield api_pb2.VolumeListFiles2Response(entries=entries)

    async def volume_get_file2(self, request: Request, caller: Caller) -> api_pb2.VolumeGetFile2Response:
        """Copies the file into blocks first, so that a commit during the download does not change it."""
        path = self.find(request.volume_id).existing(request.path)
        if path.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path}: is a directory")
        content = path.read_bytes()
        blocks = (content[start : start + BLOCK_SIZE] for start in range(0, len(content), BLOCK_SIZE))
        urls = [self._blocks.url(self._blocks.add(block)) for block in blocks]
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=len(content), start=0, len=len(content))

    async def volume_put_files2(self, request: Request, caller: Caller) -> api_pb2.VolumePutFiles2Response:
        """Requests the missing blocks; writes the files when none is missing."""
        volume = self.find(request.volume_id)
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=f, block_index=b, put_url=self._blocks.url(block.contents_sha256)
            )
            for f, file in enumerate(request.files)
            for b, block in enumerate(file.blocks)
            if block.contents_sha256 not in self._blocks
        ]
        if not missing:
            for file in request.files:
                blocks = [self._blocks[block.contents_sha256] for block in file.blocks]
                # a block is sent without its trailing zeros
                content = b"".join(block.ljust(BLOCK_SIZE, b"\0") for block in blocks)[: file.size]
                overwrite = not request.disallow_overwrite_existing_files
                volume.write(file.path, content, mode=file.mode, overwrite=overwrite)
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    async def volume_remove_file2(self, request: Request, caller: Caller) -> Empty:
        self.find(request.volume_id).remove(request.path, recursive=request.recursive)
        return Empty()

    async def volume_copy_files2(self, request: Request, caller: Caller) -> Empty:
        volume = self.find(request.volume_id)
        volume.copy(list(request.src_paths), request.dst_path, recursive=request.recursive)
        return Empty()

    async def volume_commit(self, request: Request, caller: Caller) -> api_pb2.VolumeCommitResponse:
        copy = self._working_copy(request.volume_id, caller)
        if copy.read_only:
            raise GRPCError(Status.FAILED_PRECONDITION, "the Volume is mounted read-only")
        copy.commit()
        return api_pb2.VolumeCommitResponse(skip_reload=False)  # the client reloads next

    async def volume_reload(self, request: Request, caller: Caller) -> Empty:
        copy = self._working_copy(request.volume_id, caller)
        assert caller is not None
        if in_use := paths_in_use(copy.folder, session_processes(caller.pid)):
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"there are open files preventing the operation: {', '.join(in_use)}"
            )
        copy.refresh()
        return Empty()

    def mount(self, mount: api_pb2.VolumeMount, root: Path) -> WorkingCopy:
        folder = root / mount.mount_path.strip("/")
        return WorkingCopy(self.find(mount.volume_id), folder, read_only=mount.read_only)

    def all_metadata(self) -> dict[str, api_pb2.VolumeMetadata]:
        return {volume_id: self.metadata(volume) for volume_id, volume in self._volumes.items()}

    def metadata(self, volume: Volume) -> api_pb2.VolumeMetadata:
        created = api_pb2.CreationInfo(created_at=time.time(), created_by="test")
        return api_pb2.VolumeMetadata(version=api_pb2.VOLUME_FS_VERSION_V2, name=volume.name, creation_info=created)
