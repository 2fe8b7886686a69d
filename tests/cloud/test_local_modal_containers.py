"""The local Modal, used by the real client: how containers start and end, and what is in them."""

import signal
import sys

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import tiny_app
from local_modal import LocalModal
from local_modal.containers import session_processes
from tiny_app import stdout_of

service, write_app = tiny_app.service, tiny_app.write_app  # fixtures


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
    modal.Queue.from_name("x", create_if_missing=True).hydrate()
"""
    )
    done = service.modal("run", "tiny.py", cwd=tmp_path)
    assert "caught No module named 'forgotten'" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "the local Modal has no QueueGetOrCreate" in done.stdout + done.stderr
    assert service.failures == ["QueueGetOrCreate is not implemented"]


def test_resources_and_image_of_a_container(service, write_app):
    app = write_app(
        """
base = modal.Image.debian_slim(python_version="3.11").uv_pip_install("numpy")

@app.function(image=base, cpu=0.5, memory=2048, retries=3, nonpreemptible=True)
def prepare():
    print("ready", flush=True)
    time.sleep(30)  # longer than the test: the container is killed

@app.function(image=base.uv_pip_install("torch"))
def train():
    pass

@app.local_entrypoint()
def main():
    train.remote()
    train.with_options(cpu=(2, 8), memory=(1024, 4096), retries=1).remote()
    prepare.remote()
"""
    )
    service.popen_modal("run", f"{app}::main")
    service.wait_for(lambda: service.containers and "ready" in service.containers[-1].output)
    train, changed, prepare = service.containers
    assert (train.cpu, train.memory, train.retries, train.nonpreemptible) == (0, 0, 0, False)
    assert (changed.cpu, changed.memory, changed.retries, changed.nonpreemptible) == (2, 1024, 1, False)
    assert (prepare.cpu, prepare.memory, prepare.retries, prepare.nonpreemptible) == (0.5, 2048, 3, True)
    with pytest.raises(AssertionError, match="the container of prepare is not preemptible"):
        service.preempt(prepare)
    assert not prepare.end_request

    assert [word in service.image_of(prepare) for word in ("python:3.11", "numpy", "torch")] == [True, True, False]
    assert service.image_of(train).startswith(service.image_of(prepare))
    assert "torch" in service.image_of(train)
    assert service.image_of(changed) == service.image_of(train)


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
