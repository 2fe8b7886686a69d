"""The local Modal, used by the real client: spawned calls, which outlive a container, and their client too."""

import sys

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import tiny_app
from tiny_app import stdout_of

service, write_app = tiny_app.service, tiny_app.write_app  # fixtures


def test_ids_of_a_spawned_call_stay_over_a_preemption_and_a_retry(service, write_app, tmp_path):
    app = write_app(
        """
@app.function(retries=modal.Retries(max_retries=1, initial_delay=0.0))
def train(log: str) -> int:
    number = attempt(log)
    print(f"attempt {number}: {modal.current_function_call_id()} {modal.current_input_id()}", flush=True)
    if number == 1:
        time.sleep(30)  # longer than the test: the container is preempted
    if number == 2:
        raise LookupError("the only failed attempt")
    return number

@app.local_entrypoint()
def main(log: str):
    call = train.spawn(log)
    print_line("call", call.object_id, call.get(timeout=20))
"""
    )
    client = service.popen_modal("run", f"{app}::main", "--log", tmp_path / "log")
    service.wait_for(lambda: service.containers and "attempt 1" in service.containers[0].output)
    service.preempt(service.containers[0])
    stdout, stderr = client.communicate(timeout=30)
    [(_, call_id, result)] = [line.split() for line in stdout.splitlines() if line.startswith("call ")]
    assert result == "3"
    [input_id] = {input_id for container in service.containers for input_id in container.input_ids}
    attempts = [
        line for container in service.containers for line in container.output.splitlines() if line.startswith("attempt")
    ]
    assert attempts == [f"attempt {number}: {call_id} {input_id}" for number in (1, 2, 3)]
    assert client.returncode == 0, stdout + stderr


def test_results_of_a_spawned_call_are_kept_for_everyone(service, write_app, tmp_path):
    app = write_app(
        """
@app.function()
def square(x: int, gate: str) -> int:
    wait_for(gate)
    return x * x

@app.function(retries=0)
def fail():
    raise LookupError("nothing there")

@app.function()
def results(call_id: str, gate: str) -> list[int]:
    call = modal.FunctionCall.from_id(call_id)
    try:
        call.get(timeout=0)
    except TimeoutError:
        Path(gate).touch()
    return [call.get(), call.get(timeout=0), modal.FunctionCall.from_id(call_id).get(timeout=0)]

@app.local_entrypoint()
def main(gate: str):
    call, failed = square.spawn(3, gate), fail.spawn()
    print_line("container", results.remote(call.object_id, gate))
    print_line("client", call.get(timeout=0), call.get(timeout=0))
    print_line("ids", call.object_id, failed.object_id)
    try:
        failed.get(timeout=20)
    except LookupError:
        pass
"""
    )
    lines = stdout_of(service.modal("run", f"{app}::main", "--gate", tmp_path / "gate")).splitlines()
    assert {"container [9, 9, 9]", "client 9 9"} <= set(lines)
    [(_, call_id, failed_id)] = [line.split() for line in lines if line.startswith("ids ")]

    script = tmp_path / "script.py"  # another client, when the app has ended
    script.write_text(
        """
import sys, modal
call, failed = map(modal.FunctionCall.from_id, sys.argv[1:])
print(call.get(), call.get(timeout=0), call.num_inputs())
for call in (failed, failed, modal.FunctionCall.from_id("fc-unknown")):
    try:
        call.get(timeout=0)
    except Exception as error:
        print(type(error).__name__)
"""
    )
    lines = stdout_of(service.python(script, call_id, failed_id)).splitlines()
    assert lines == ["9 9 1", "LookupError", "LookupError", "NotFoundError"]
    assert service.failures == []


@pytest.mark.slow
def test_detached_app_finishes_its_calls_when_its_client_is_killed(service, write_app, tmp_path):
    app = write_app(
        """
@app.function(retries=modal.Retries(max_retries=2, initial_delay=1.0), single_use_containers=True)
def train(log: str, gate: str) -> int:
    number = attempt(log)
    print(f"attempt {number}", flush=True)
    wait_for(gate)
    if number == 1:
        raise LookupError("the first failed attempt")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

@app.function(single_use_containers=True)
def plain(gate: str):
    print("ready", flush=True)
    wait_for(gate)
    print("finished", flush=True)

@app.local_entrypoint()
def main(log: str, gate: str):
    print(train.spawn(log, gate).object_id, flush=True)
    plain.remote(gate)
"""
    )
    gate = tmp_path / "gate"
    client = service.popen_modal("run", "--detach", f"{app}::main", "--log", tmp_path / "log", "--gate", gate)
    while not (line := client.stdout.readline()).startswith("fc-"):
        assert line, client.communicate()
    service.wait_for(lambda: {"attempt 1\n", "ready\n"} <= {container.output for container in service.containers})
    client.kill()
    client.communicate()
    gate.touch()
    # between two attempts no process of the app runs
    service.wait_for(lambda: any("attempt 3" in container.output for container in service.containers))
    script = tmp_path / "script.py"
    script.write_text("import sys, modal\nprint(modal.FunctionCall.from_id(sys.argv[1]).get(timeout=20))\n")
    assert stdout_of(service.python(script, line.strip())) == "3\n"
    [plain] = [container for container in service.containers if container.function == "plain"]
    assert plain.output == "ready\nfinished\n"
    assert service.failures == []


@pytest.mark.slow
def test_running_and_queued_calls_end_with_their_app(service, write_app, tmp_path):
    app = write_app(
        """
@app.function(max_containers=1)
def train():
    time.sleep(30)  # longer than the test: the container is interrupted

@app.local_entrypoint()
def main():
    print_line("ids", *[train.spawn().object_id for _ in range(2)])
"""
    )
    lines = stdout_of(service.modal("run", f"{app}::main")).splitlines()
    [(_, *call_ids)] = [line.split() for line in lines if line.startswith("ids ")]
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, modal
for call in map(modal.FunctionCall.from_id, sys.argv[1:]):
    try:
        call.get(timeout=20)
    except modal.exception.RemoteError as error:
        print("ended")
"""
    )
    assert stdout_of(service.python(script, *call_ids)) == "ended\nended\n"
    assert service.failures == []
