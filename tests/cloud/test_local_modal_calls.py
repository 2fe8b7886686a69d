"""The local Modal, used by the real client: functions and classes, how they are called, and their results.

Each test writes its app into a folder of its own. Functions that wait for the test, or for one another, get the path of
a file on this machine: containers are processes of this machine, so they see it. The tests of features that
`test_modal_app` uses too are marked slow.
"""

import sys

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import tiny_app
from tiny_app import stdout_of

service, write_app = tiny_app.service, tiny_app.write_app  # fixtures


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


def test_function_and_entry_point_of_one_name(service, write_app, tmp_path):
    app = write_app(
        """
@app.function(name="train", gpu="T4")
def train_on_gpu(steps: int) -> str:
    return f"{steps} steps in {os.getpid()}"

@app.local_entrypoint(name="train")
def train(steps: int = 1):
    print_line("remote", train_on_gpu.remote(steps))
    print_line("spawned", train_on_gpu.with_options(gpu="H100", timeout=60).spawn(steps + 1).get(timeout=20))
"""
    )
    lines = stdout_of(service.modal("run", f"{app}::train", "--steps=3")).splitlines()
    remote, spawned = service.containers
    assert [line for line in lines if line.startswith(("remote", "spawned"))] == [
        f"remote 3 steps in {remote.pid}",
        f"spawned 4 steps in {spawned.pid}",
    ]
    assert [(container.function, container.gpu_type) for container in (remote, spawned)] == [
        ("train", "T4"),
        ("train", "H100"),
    ]
    assert spawned.timeout == 60
    assert service.failures == []


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
