"""Volumes, version 2: the committed files in a plain folder, and the private copy that a container works on.

A container sees the state at its start until it reloads, and its changes are visible to others after it commits. A
reload drops uncommitted changes, and nothing is committed in the background (at exit only with `exit_commits`), so a
test fails where an app forgets a call. Modal itself also commits in the background, at any moment.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aiohttp import web
from grpclib import GRPCError, Status

BLOCK_SIZE = 8 * 1024 * 1024  # files are sent in blocks of this size: modal._utils.blob_utils.BLOCK_SIZE


@dataclass(eq=False)
class Volume:
    """The committed files. Paths are relative to the Volume, with or without a leading slash, as in the RPCs."""

    volume_id: str
    name: str
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def local(self, path: str) -> Path:
        relative = PurePosixPath(path.strip("/") or ".")
        if ".." in relative.parts:
            raise GRPCError(Status.INVALID_ARGUMENT, f"path {path!r} leaves the Volume")
        return self.folder / relative

    def existing(self, path: str) -> Path:
        local = self.local(path)
        if not os.path.lexists(local):
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {path!r}")
        return local

    def entries(self, path: str, *, recursive: bool) -> list[Path]:
        local = self.existing(path)
        if not local.is_dir():
            return [local]
        return sorted(local.rglob("*") if recursive else local.iterdir())

    def write(self, path: str, content: bytes, *, mode: int, overwrite: bool) -> None:
        local = self.local(path)
        if local.is_dir() or (local.exists() and not overwrite):
            raise GRPCError(Status.ALREADY_EXISTS, f"{path}: already exists")
        temporary = self._temporary_path()
        temporary.write_bytes(content)
        temporary.chmod(mode)
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(local)

    def remove(self, path: str, *, recursive: bool) -> None:
        local = self.existing(path)
        if local.is_dir() and not local.is_symlink():
            if not recursive:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{path}: is a directory, and recursive is not set")
            shutil.rmtree(local)
        else:
            local.unlink()

    def copy(self, sources: list[str], destination: str, *, recursive: bool) -> None:
        target = self.local(destination)
        for source in map(self.existing, sources):
            if source.is_dir() and not recursive:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{source.name}: is a directory, and recursive is not set")
            to = target / source.name if target.is_dir() else target
            if source.is_dir():
                shutil.copytree(source, to, dirs_exist_ok=True)
            else:
                shutil.copy2(source, to)

    def update(self, path: str, copy: Path, kind: str) -> None:
        """Makes `path` equal to that in a container's copy, a file atomically: a test may be reading it."""
        _transfer(copy / path, self.folder / path, kind, self._temporary_path())

    def discard(self, path: str) -> None:
        _remove(self.folder / path)

    def _temporary_path(self) -> Path:
        return self.folder.with_name(f".arriving-{self.volume_id}")


class WorkingCopy:
    """The copy of a Volume that one container works on, in a folder of its own."""

    def __init__(self, volume: Volume, folder: Path, *, read_only: bool = False) -> None:
        self.volume = volume
        self.folder = folder
        self.read_only = read_only
        self._known: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def commit(self) -> None:
        """Merges the changes since the last commit or reload. If two containers wrote a file, the last commit wins."""
        present = dict(_contents(self.folder))
        for path in sorted(self._known.keys() - present.keys(), reverse=True):  # files before their folder
            self.volume.discard(path)
        for path, kind in present.items():
            if self._known.get(path) != kind:
                with suppress(FileNotFoundError):  # a temporary file of another thread, deleted meanwhile
                    self.volume.update(path, self.folder, kind)
        self._known = present

    def refresh(self) -> None:
        """Makes the copy equal to the committed files; equal files are not written again."""
        present = dict(_contents(self.folder))
        committed = dict(_contents(self.volume.folder))
        for path in sorted(present.keys() - committed.keys(), reverse=True):
            _remove(self.folder / path)
        for path, kind in committed.items():
            if present.get(path) != kind:
                _transfer(self.volume.folder / path, self.folder / path, kind, self.folder.with_name(".arriving"))
        self._known = committed


def _contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Every path in the folder, folders before their files, each with a digest of its content."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        try:
            if path.is_symlink():
                yield relative, f"link to {path.readlink()}"
            elif path.is_dir():
                yield relative, "folder"
            else:
                with path.open("rb") as file:
                    yield relative, hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:  # another thread of the container renamed it meanwhile
            continue


def _transfer(source: Path, target: Path, kind: str, temporary: Path) -> None:
    if target.is_dir() and not target.is_symlink() and kind != "folder":
        shutil.rmtree(target)
    elif kind == "folder" and os.path.lexists(target) and not target.is_dir():
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        target.mkdir(exist_ok=True)
    else:
        shutil.copy2(source, temporary, follow_symlinks=False)
        temporary.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if not any(path.iterdir()):  # another container may have put a file there
            path.rmdir()
    else:
        path.unlink(missing_ok=True)


def paths_in_use(folder: Path, pids: list[int]) -> list[str]:
    """What these processes use below the folder: current folders, open files, memory maps (Linux only)."""
    in_use = []
    for pid in pids:
        for how, path in _paths_of_process(Path("/proc", str(pid))):
            if path.is_relative_to(folder):
                in_use.append(f"path {path.relative_to(folder)} is {how} by process {pid}".replace(" (deleted)", ""))
    return in_use


def _paths_of_process(process: Path) -> Iterator[tuple[str, Path]]:
    try:
        links = [process / "cwd", *(process / "fd").iterdir()]
        maps = (process / "maps").read_text(errors="replace").splitlines()
    except OSError:  # the process has ended
        return
    for link in links:
        with suppress(OSError):  # the descriptor was closed meanwhile
            yield "open" if link.parent.name == "fd" else "entered", link.readlink()
    for fields in (line.split(maxsplit=5) for line in maps):
        if len(fields) == 6:
            yield "mapped", Path(fields[5])


class Blocks:
    """The store of file blocks, by the SHA-256 of their content, served over HTTP on the loopback interface."""

    def __init__(self) -> None:
        self._blocks: dict[str, bytes] = {}
        self._runner: web.AppRunner | None = None
        self._url = ""

    async def open(self) -> None:
        app = web.Application(client_max_size=2 * BLOCK_SIZE)
        app.add_routes([web.get("/block/{digest}", self._get), web.put("/block/{digest}", self._put)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._url = "http://{}:{}/block".format(*self._runner.addresses[0])

    async def close(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    def __contains__(self, digest: bytes) -> bool:
        return digest.hex() in self._blocks

    def __getitem__(self, digest: bytes) -> bytes:
        return self._blocks[digest.hex()]

    def url(self, digest: bytes) -> str:
        return f"{self._url}/{digest.hex()}"

    def add(self, content: bytes) -> bytes:
        """Store a block; its digest."""
        digest = hashlib.sha256(content).digest()
        self._blocks[digest.hex()] = content
        return digest

    async def _get(self, request: web.Request) -> web.Response:
        return web.Response(body=self._blocks[request.match_info["digest"]])

    async def _put(self, request: web.Request) -> web.Response:
        if self.add(await request.read()).hex() != request.match_info["digest"]:
            return web.Response(status=400, text="the block is not what its digest says")
        return web.Response(body=b"stored")
