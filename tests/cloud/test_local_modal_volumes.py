"""The local Modal, used by the real client: Volumes, in containers and from the client."""

import sys

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import tiny_app
from tiny_app import stdout_of

service, write_app = tiny_app.service, tiny_app.write_app  # fixtures


def test_volume_shows_committed_files_after_a_reload_only(service, write_app):
    app = write_app(
        """
import ctypes, mmap
libc = ctypes.CDLL(None)  # Python's own mmap keeps the file open too
libc.mmap.restype = ctypes.c_void_p

@app.function(volumes={MOUNT: volume}, single_use_containers=True)
def change(commit: bool, files: dict[str, str | None]):
    for name, text in files.items():
        path = Path(MOUNT) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text) if text is not None else path.unlink()
    if commit:
        volume.commit()

@app.cls(volumes={MOUNT: volume})
class Reader:
    @modal.method()
    def reload(self) -> str:
        try:
            volume.reload()
        except RuntimeError as error:
            return str(error)
        return ""

    @modal.method()
    def commit(self, name: str) -> str:
        (Path(MOUNT) / name).write_text("by the reader")
        try:
            volume.commit()
        except RuntimeError as error:
            return str(error)
        return ""

    @modal.method()
    def read(self) -> dict[str, str]:
        paths = [path for path in Path(MOUNT).rglob("*") if path.is_file()]
        return {str(path.relative_to(MOUNT)): path.read_text() for path in paths}

    @modal.method()
    def hold(self, how: str):
        self.held = (Path(MOUNT) / "a").open("rb")
        if how == "mapped":
            self.address = libc.mmap(None, 1, mmap.PROT_READ, mmap.MAP_PRIVATE, self.held.fileno(), 0)
            self.held.close()

    @modal.method()
    def release(self):
        if self.held.closed:
            libc.munmap(ctypes.c_void_p(self.address), 1)
        self.held.close()

@app.local_entrypoint()
def main():
    reader = Reader()
    assert reader.read.remote() == {}
    change.remote(False, {"lost": "never committed"})
    change.remote(True, {"a": "1", "folder/b": "1"})
    assert reader.read.remote() == {}, "not before a reload"
    assert reader.reload.remote() == ""
    assert reader.read.remote() == {"a": "1", "folder/b": "1"}

    change.remote(True, {"a": "2", "folder/b": None})
    assert reader.commit.remote("c") == ""
    assert reader.read.remote() == {"a": "2", "c": "by the reader"}, "merged, and a commit reloads"

    for how in ("open", "mapped"):
        reader.hold.remote(how)
        message = reader.reload.remote()
        assert "there are open files preventing the operation: path a is " + how in message, message
        assert reader.commit.remote(how) == message, "a commit ends with a reload"
        reader.release.remote()
        assert reader.reload.remote() == ""
    print("all checks passed")
"""
    )
    assert "all checks passed" in stdout_of(service.modal("run", f"{app}::main"))
    committed = service.volume("shared")
    assert sorted(path.name for path in committed.iterdir()) == ["a", "c", "folder", "mapped", "open"]
    readers = [container for container in service.containers if container.function == "Reader.*"]
    assert len(readers) == 1, "all calls were served by one container"
    assert service.count("VolumeCommit") == 2 + 3, "only the app commits"


@pytest.mark.slow
def test_volume_upload_download_and_listing_by_a_client(service, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import io, modal
big = bytes(range(256)) * 40_000 + bytes(8_000_000)  # three blocks, one without its zeros
volume = modal.Volume.from_name("new", create_if_missing=True, version=2)
with volume.batch_upload() as batch:
    batch.put_file("small.txt", "/runs/one/small.txt")
    batch.put_file(io.BytesIO(big), "big.bin")
    batch.put_file(io.BytesIO(b""), "empty")
try:
    with volume.batch_upload() as batch:
        batch.put_file("small.txt", "/runs/one/small.txt")
except FileExistsError:
    print("exists")
with volume.batch_upload(force=True) as batch:
    batch.put_file("script.py", "/runs/one/small.txt")
assert b"".join(volume.read_file("runs/one/small.txt")) == open("script.py", "rb").read()
assert b"".join(volume.read_file("big.bin")) == big
print([(entry.path, entry.type.name, entry.size) for entry in volume.listdir("/")])
print([entry.path for entry in volume.iterdir("runs")])
volume.remove_file("empty")
try:
    list(volume.read_file("empty"))
except FileNotFoundError:
    print("removed")
"""
    )
    (tmp_path / "small.txt").write_text("small")
    size = 256 * 40_000 + 8_000_000
    assert stdout_of(service.python(script, cwd=tmp_path)).splitlines() == [
        "exists",
        f"[('big.bin', 'FILE', {size}), ('empty', 'FILE', 0), ('runs', 'DIRECTORY', 0)]",
        "['runs/one', 'runs/one/small.txt']",
        "removed",
    ]
    assert (service.volume("new") / "big.bin").stat().st_size == size

    stdout_of(service.modal("volume", "create", "made"))
    stdout_of(service.modal("volume", "put", "made", "small.txt", "/runs/a/small.txt", cwd=tmp_path))
    assert stdout_of(service.modal("volume", "ls", "made", "runs")) == "runs/a\n"
    (tmp_path / "got").mkdir()
    stdout_of(service.modal("volume", "get", "made", "runs/a", "got", cwd=tmp_path))
    stdout_of(service.modal("volume", "get", "made", "runs/a/small.txt", "got/one.txt", cwd=tmp_path))
    assert (tmp_path / "got/a/small.txt").read_text() == (tmp_path / "got/one.txt").read_text() == "small"
    missing = service.modal("volume", "get", "made", "nothing", "got", cwd=tmp_path)
    assert missing.returncode != 0
    assert service.failures == []


def test_missing_paths_and_folders_of_a_volume_in_a_client(service, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import modal

def error_of(function, *arguments, **options):
    try:
        list(function(*arguments, **options) or [])
    except Exception as error:
        return type(error)

volume = modal.Volume.from_name("shared", version=2)
print([entry.path for entry in volume.listdir("/", recursive=True)])
print(error_of(volume.remove_file, "runs"))
for missing in ("absent", "runs/absent", "runs/a/state/below-a-file"):
    assert error_of(volume.read_file, missing) is FileNotFoundError, missing
    for recursive in (False, True):
        assert error_of(volume.remove_file, missing, recursive=recursive) is FileNotFoundError, missing
        # the SDK turns it into FileNotFoundError in the other two methods only
        assert error_of(volume.listdir, missing, recursive=recursive) is modal.exception.NotFoundError, missing
volume.remove_file("/runs/a", recursive=True)
print([entry.path for entry in volume.listdir("/", recursive=True)])
volume.remove_file("runs/b/state", recursive=True)
print([entry.path for entry in volume.listdir("runs")], volume.listdir("runs/b"))
"""
    )
    for run in "ab":
        folder = service.volume("shared") / "runs" / run
        folder.mkdir(parents=True)
        (folder / "state").touch()
    assert stdout_of(service.python(script)).splitlines() == [
        "['runs', 'runs/a', 'runs/a/state', 'runs/b', 'runs/b/state']",
        "<class 'modal.exception.InvalidError'>",
        "['runs', 'runs/b', 'runs/b/state']",
        "['runs/b'] []",
    ]
    assert service.failures == []
