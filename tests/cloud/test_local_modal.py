"""The local Modal, used by the real client: each feature of an app, and each event that a test can cause.

Each test writes its app into a folder of its own. Functions that wait for the test, or for one another, get the path of
a file on this machine: containers are processes of this machine, so they see it. The tests of features that
`test_modal_app` uses too are marked slow.
"""

import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

from local_modal import LocalModal
from local_modal.containers import session_processes

HEAD = """
import os, signal, sys, time
from pathlib import Path
import modal

MOUNT = os.environ.get("NANOGPT_MOUNT", "/data")
volume = modal.Volume.from_name("shared", create_if_missing=True, version=2)
app = modal.App("tiny")

def wait_for(path):
    deadline = time.monotonic() + 20
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"{path} was not created"
        time.sleep(0.02)  # the interval of polling for a file of the test

def attempt(path):
    # the number of calls with this path so far: 1, 2, 3, ...
    with open(path, "a") as file:
        file.write(".")
    return Path(path).stat().st_size

def print_line(*words):
    # in one write: several containers print to the same stream at the same time
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
"""


@pytest.fixture
def service(tmp_path):
    with LocalModal(tmp_path / "modal", secrets={"named": {"NAMED": "from the service"}}, grace=10) as service:
        yield service


@pytest.fixture
def write_app(tmp_path):
    def write(body: str) -> Path:
        path = tmp_path / "tiny.py"
        path.write_text(HEAD + body)
        return path

    return write


def stdout_of(done):
    """The output of a command that has to succeed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_modal_run_streams_logs_and_stores_the_result(service, write_app, tmp_path):
    app = write_app(
        """
@app.function()
def greet(gate: str, name: str = "nobody", times: int = 1, loud: bool = False) -> str:
    print("to stdout: ünïcode", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    wait_for(gate)
    return f"hello {name}" * times + "!" * loud

@app.function()
def fail():
    raise LookupError("nothing there")
"""
    )
    gate, result = tmp_path / "gate", tmp_path / "result"
    client = service.popen_modal(
        "run", "-w", result, "tiny.py::greet", "--gate", gate, "--name=joe", "--loud", cwd=tmp_path
    )
    while "to stderr" not in (line := client.stdout.readline()):
        # the function waits for the gate, so a log that is not streamed would never arrive
        assert line, client.communicate()
    gate.touch()
    assert client.wait(20) == 0
    assert result.read_text() == "hello joe!"
    assert sorted(service.containers[0].output.splitlines()) == ["to stderr", "to stdout: ünïcode"]
    assert (service.containers[0].end_reason, service.containers[0].exit_status) == ("stopped", 0)

    failed = service.modal("run", "--detach", f"{app}::fail")
    assert failed.returncode == 1
    assert "LookupError: nothing there" in failed.stdout + failed.stderr
    assert service.failures == []


def test_remote_spawn_local_map_and_generator_calls(service, write_app, tmp_path):
    write_app(
        """
@app.function()
def square(x: int) -> int:
    return x * x

@app.function()
def meet(folder: str, me: int, other: int) -> str:
    (Path(folder) / str(me)).touch()
    wait_for(Path(folder) / str(other))
    return f"{me} met {other}"

@app.function()
def count(n: int):
    for i in range(n):
        yield i

@app.function()
def square_of_square(x: int) -> int:
    return square.remote(square.remote(x))

@app.function()
def fail():
    raise LookupError("nothing there")

@app.local_entrypoint()
def main(folder: str):
    call = square.spawn(4)
    print_line("results", square.remote(3), call.get(timeout=20), square.local(5), square_of_square.remote(2))
    print_line("map", sorted(meet.starmap([(folder, 1, 2), (folder, 2, 1)])))
    print_line("generator", list(count.remote_gen(4)))
    try:
        fail.remote()
    except LookupError as error:
        print_line("caught", repr(error))
"""
    )
    (tmp_path / "meeting").mkdir()
    done = service.modal("run", "tiny.py", "--folder", tmp_path / "meeting", cwd=tmp_path)
    lines = [
        line for line in stdout_of(done).splitlines() if line.startswith(("results", "map", "generator", "caught"))
    ]
    assert lines == [
        "results 9 16 25 16",
        "map ['1 met 2', '2 met 1']",
        "generator [0, 1, 2, 3]",
        "caught LookupError('nothing there')",
    ]
    squares, meetings = (
        [container.input_ids for container in service.containers if container.function == name]
        for name in ("square", "meet")
    )
    assert sum(map(len, squares)) == 4
    assert len(squares) <= 2, "a warm container serves one input after another"
    assert sorted(map(len, meetings)) == [1, 1]

    script = tmp_path / "script.py"
    script.write_text("from tiny import app, square\nwith app.run():\n    print('script', square.remote(7))\n")
    assert stdout_of(service.python(script)) == "script 49\n"


@pytest.mark.slow
def test_function_options_and_timeouts(service, write_app, tmp_path):
    app = write_app(
        """
image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("numpy")
other = modal.Volume.from_name("other", create_if_missing=True, version=2)

@app.function(image=image, gpu="T4", timeout=30, single_use_containers=True, volumes={MOUNT: volume})
def where() -> str:
    return str(sorted(path.name for path in Path(MOUNT).iterdir()))

@app.function(timeout=1, retries=modal.Retries(max_retries=1, initial_delay=0.0))
def sleep(log: str):
    print("attempt", attempt(log), flush=True)
    time.sleep(30)  # longer than the test: the container is killed

@app.local_entrypoint()
def main(log: str):
    print_line("plain", where.remote())
    print_line("changed", where.with_options(gpu="H100:8", timeout=60, volumes={"/elsewhere": other}).remote())
    try:
        sleep.remote(log)
    except modal.exception.FunctionTimeoutError as error:
        print_line("late", error)
"""
    )
    for name in ("shared", "other"):
        service.volume(name).mkdir()
        (service.volume(name) / f"in {name}").touch()
    lines = stdout_of(service.modal("run", f"{app}::main", "--log", tmp_path / "log")).splitlines()
    assert "plain ['in shared']" in lines
    assert "changed ['in other']" in lines
    assert any("late" in line and "timeout of 1s" in line for line in lines)
    plain, changed, *late = service.containers
    assert (plain.gpu_type, plain.gpu_count, plain.timeout, plain.single_use) == ("T4", 1, 30, True)
    assert (changed.gpu_type, changed.gpu_count, changed.timeout, changed.single_use) == ("H100", 8, 60, True)
    assert [container.end_reason for container in late] == ["timed out", "timed out"]
    assert any("uv pip install" in command for image in service.images for command in image.dockerfile_commands)


@pytest.mark.slow
def test_exceptions_and_crashes_are_retried(service, write_app, tmp_path):
    app = write_app(
        """
retries = modal.Retries(max_retries=2, initial_delay=0.0)

@app.function(retries=retries, single_use_containers=True)
def flaky(log: str, crash: bool) -> int:
    n = attempt(log)
    if n < 2:
        if crash:
            os.kill(os.getpid(), signal.SIGKILL)
        raise LookupError(f"attempt {n}")
    return n

@app.function()
def killed():
    print("ready", flush=True)
    time.sleep(30)  # longer than the test: the container is killed

@app.local_entrypoint()
def main(folder: str):
    spawned = flaky.spawn(f"{folder}/spawned", True)
    mapped = list(flaky.starmap([(f"{folder}/mapped0", False), (f"{folder}/mapped1", True)]))
    print_line("results", mapped, spawned.get(timeout=20), flaky.remote(f"{folder}/remote", False))
    killed.remote()
"""
    )
    logs = tmp_path / "logs"
    logs.mkdir()
    client = service.popen_modal("run", f"{app}::main", "--folder", logs)
    ready = service.wait_for(lambda: [container for container in service.containers if "ready" in container.output])
    service.crash(ready[0])
    stdout, stderr = client.communicate(timeout=30)
    assert "results [2, 2] 2 2" in stdout
    attempts = {path.name: path.stat().st_size for path in logs.iterdir()}
    assert attempts == {"spawned": 2, "mapped0": 2, "mapped1": 2, "remote": 2}
    flaky = [container.end_reason for container in service.containers if container.function == "flaky"]
    assert sorted(flaky) == ["crashed"] * 2 + ["done"] * 6
    assert client.returncode == 1
    assert "crashed: exit status -9" in stdout + stderr
    retried = sum(len(request.inputs) for rpc, request in service.calls if rpc == "FunctionRetryInputs")
    assert retried == 3, "the client retries .remote and .map, the service .spawn"


def test_preempted_input_starts_again_in_a_new_container(service, write_app, tmp_path):
    app = write_app(
        """
@app.function(volumes={MOUNT: volume}, single_use_containers=True)
def train(log: str, steps: int) -> str:
    number = attempt(log)
    state = Path(MOUNT) / "state"
    done = int(state.read_text()) if state.exists() else 0
    print(f"start at {done}, input {modal.current_input_id()}", flush=True)
    while True:
        try:
            while done < steps:
                time.sleep(0.02)  # the work of a step
                done += 1
                print(f"step {done}.", flush=True)
            return str(done)
        except KeyboardInterrupt:
            state.write_text(str(done))
            volume.commit()
            print("saved", flush=True)
            if number != 2:  # the second continues, until it is killed
                raise
"""
    )
    client = service.popen_modal("run", f"{app}::train", "--log", tmp_path / "log", "--steps=2000")
    state = service.volume("shared") / "state"

    def wait_for_step(container: int, step: int) -> None:
        wanted = f"step {step}."
        service.wait_for(lambda: len(service.containers) > container and wanted in service.containers[container].output)

    wait_for_step(0, 5)
    service.preempt(service.containers[0])
    first = int(state.read_text())
    wait_for_step(1, first + 5)
    service.preempt(service.containers[1], grace=0.5)
    second = int(state.read_text())
    wait_for_step(2, second + 5)
    client.send_signal(signal.SIGINT)
    stdout, _ = client.communicate(timeout=30)
    assert "Disconnecting from Modal" in stdout
    assert int(state.read_text()) >= second + 5, "Ctrl-C interrupts the container, which has time to save"

    assert [container.end_reason for container in service.containers] == ["preempted", "preempted", "stopped"]
    assert [container.exit_status for container in service.containers] == [0, -signal.SIGKILL, 0]
    [[input_id]] = {tuple(container.input_ids) for container in service.containers}
    starts = [container.output.splitlines()[0] for container in service.containers]
    assert starts == [f"start at {done}, input {input_id}" for done in (0, first, second)]


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


@pytest.mark.slow
def test_deployed_classes_and_functions(service, write_app, tmp_path):
    app = write_app(
        """
@app.cls()
class Model:
    run: str = modal.parameter()
    times: int = modal.parameter(default=2)

    @modal.enter()
    def load(self):
        self.loaded = f"{self.run} loaded in {os.getpid()}"
        self.calls = 0

    @modal.method()
    def sample(self, prompt: str) -> str:
        self.calls += 1
        return f"{self.loaded}: {prompt * self.times}, call {self.calls}"

    @modal.method()
    def stream(self, prompt: str):
        for letter in prompt:
            yield letter

@app.function()
def double(x: int) -> int:
    return 2 * x
"""
    )
    assert "App deployed" in stdout_of(service.modal("deploy", app))
    script = tmp_path / "script.py"
    script.write_text(
        """
import modal
Model = modal.Cls.from_name("tiny", "Model")
model = Model(run="x")
print(model.sample.remote("ab"))
print(model.sample.remote("cd"))
print(list(model.stream.remote_gen("ef")))
print(Model(run="y", times=1).sample.remote("gh"))
print(modal.Function.from_name("tiny", "double").remote(4))
try:
    modal.Function.from_name("tiny", "absent").remote()
except modal.exception.NotFoundError as error:
    print("not found")
"""
    )
    lines = stdout_of(service.python(script)).splitlines()
    x, y, function = service.containers
    assert lines == [
        f"x loaded in {x.pid}: abab, call 1",
        f"x loaded in {x.pid}: cdcd, call 2",
        "['e', 'f']",
        f"y loaded in {y.pid}: gh, call 1",
        "8",
        "not found",
    ]
    assert [len(container.input_ids) for container in (x, y, function)] == [3, 1, 1]
    assert not any(container.end_reason for container in (x, y, function)), "a deployed app keeps running"


def test_environment_and_files_of_a_container(service, write_app, tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_TEST", "1")
    monkeypatch.setenv("MODAL_PROFILE", "of-the-user")
    package = tmp_path / "shipped"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import WORD\n")
    (package / "inner.py").write_text("WORD = 'shipped'\n")
    (tmp_path / "forgotten.py").touch()
    write_app(
        """
image = modal.Image.debian_slim(python_version="3.11").env({"IN_IMAGE": "two words", "BOTH": "image"})
image = image.add_local_python_source("shipped")
secrets = [modal.Secret.from_name("named"), modal.Secret.from_dict({"GIVEN": "yes", "ABSENT": None, "BOTH": "secret"})]

@app.function(image=image, secrets=secrets)
def look():
    import shipped
    assert os.environ["NAMED"] == "from the service"
    assert (os.environ["GIVEN"], os.environ["IN_IMAGE"], os.environ["BOTH"]) == ("yes", "two words", "secret")
    assert not {"ABSENT", "OF_THE_TEST", "MODAL_PROFILE", "MODAL_TOKEN_ID"} & set(os.environ)
    assert shipped.WORD == "shipped" and Path(shipped.__file__).is_relative_to(Path.cwd())
    assert {Path(os.environ[name]).parent for name in ("HOME", "TMPDIR")} == {Path.cwd().parent}
    import forgotten

@app.local_entrypoint()
def main():
    try:
        look.remote()
    except ModuleNotFoundError as error:
        print_line("caught", error)
    modal.Dict.from_name("x", create_if_missing=True).hydrate()
"""
    )
    done = service.modal("run", "tiny.py", cwd=tmp_path)
    assert "caught No module named 'forgotten'" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "the local Modal has no DictGetOrCreate" in done.stdout + done.stderr
    assert service.failures == ["DictGetOrCreate is not implemented"]


def test_secret_from_dotenv(service, write_app, tmp_path):
    pytest.importorskip("dotenv")
    (tmp_path / ".env").write_text("FROM_FILE=yes\n")
    app = write_app(
        """
@app.function(secrets=[modal.Secret.from_dotenv()])
def look() -> str:
    return os.environ["FROM_FILE"]
"""
    )
    stdout_of(service.modal("run", "-w", tmp_path / "result", f"{app}::look", cwd=tmp_path))
    assert (tmp_path / "result").read_text() == "yes"


@pytest.mark.slow
def test_exit_kills_all_processes_and_prints_the_report(tmp_path, write_app, capsys):
    app = write_app(
        """
import subprocess

@app.function()
def sleep():
    subprocess.Popen(["sleep", "60"])
    print("sleeping", flush=True)
    time.sleep(60)  # longer than the test: the container is killed
"""
    )
    with pytest.raises(TimeoutError, match="sleeping"), LocalModal(tmp_path / "modal") as service:
        stdout_of(service.modal("--help"))
        with pytest.raises(TimeoutError, match="all processes have exited"):
            service.wait_for(lambda: service.containers)
        client = service.popen_modal("run", f"{app}::sleep")
        service.wait_for(lambda: service.containers and "sleeping" in service.containers[0].output)
        pid = service.containers[0].pid
        assert len(session_processes(pid)) == 2
        service.wait_for(lambda: False, timeout=0.1)
    assert session_processes(pid) == session_processes(client.pid) == []
    assert "--- container of sleep" in capsys.readouterr().out


@pytest.mark.slow
def test_app_that_fails_at_import_reports_its_own_error(service, write_app):
    app = write_app(
        """
if not modal.is_local():
    raise LookupError("broken at import")

@app.function(retries=1)
def never():
    pass
"""
    )
    done = service.modal("run", f"{app}::never")
    assert done.returncode == 1
    assert "LookupError: broken at import" in done.stdout + done.stderr
    assert [container.end_reason for container in service.containers] == ["crashed", "crashed"]
