"""Trainings that the page starts: real ones from start to end, and what is refused before a process is started."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, wait_for
from example_records import START
from record_files import append, make_run
from served_app import client_of
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.api.main_job import KEPT_EARLY
from nanogpt_lite.data.folder_names import DATA_DIR
from nanogpt_lite.http_api import training_request
from nanogpt_lite.runs.run_files import LOCK_FILE, lock_run
from nanogpt_lite.runs.run_folder import RUNS_DIR, early_weights_in

trainings = pytest.importorskip("nanogpt_lite.server.trainings", reason="needs starlette (the extra serve)")
run_list = pytest.importorskip("nanogpt_lite.server.run_list", reason="needs starlette (the extra serve)")
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")

SMALL: dict[str, Any] = {
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 1,
    "block_size": 16,
    "batch_size": 4,
    "ngram": 1,
    "ngram_expert": 0,
    "eval_interval": 10,
    "log_interval": 1,
    "patience": 0,
}
LONG = {**SMALL, "max_iters": 100_000}


@pytest.fixture(autouse=True)
def processes(tmp_path, monkeypatch):
    """The processes that are started, by their commands. They end with the test; its folder is the current one."""
    monkeypatch.chdir(tmp_path)
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def record(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(trainings.subprocess, "Popen", record)
    yield started
    for process in started:
        process.kill()
        process.wait()


class NoProcess:
    """Stands for a process that never ends: what is started, without starting it."""

    def __init__(self, command, **options):
        self.command, self.options, self.status = command, options, None

    def poll(self):
        return self.status

    def send_signal(self, number):
        self.status = -number

    def terminate(self):
        self.send_signal(15)

    def kill(self):
        self.status = -9


@pytest.fixture
def commands(monkeypatch):
    """The commands that would be started; none is."""
    started = []

    def start(command, **options):
        started.append(NoProcess(command, **options))
        return started[-1]

    monkeypatch.setattr(trainings.subprocess, "Popen", start)
    return started


def start(client, **fields):
    return client.post("/api/trainings", json=fields)


def error_of(response, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return response.json()["error"]["message"]


def options_of(process: NoProcess) -> dict[str, str]:
    """The options of a command, without those of the server of `client_of`, which it passes on."""
    assert process.command[:4] == [sys.executable, "-m", "nanogpt_lite", "train"]
    assert process.command[4].startswith("--out_dir=")
    options = dict(word.removeprefix("--").split("=", 1) for word in process.command[4:])
    assert (len(options), options.pop("device"), options.pop("threads")) == (len(process.command) - 4, "cpu", "1")
    return options


def checkpoints_of(run: dict[str, Any]) -> list[tuple[int, str]]:
    return [(checkpoint["step"], checkpoint["model"]) for checkpoint in run["checkpoints"]]


def run_of(client, name: str) -> dict[str, Any] | None:
    return next((run for run in client.get("/api/runs").json()["runs"] if run["name"] == name), None)


def training_of(client) -> Any:
    return client.get("/api/runs").json()["training"]


def records_of(client, name: str, kind: str) -> list[dict[str, Any]]:
    response = client.get(f"/api/runs/{name}/records")
    return [record for record in response.json().get("records", []) if record["kind"] == kind]


def all_files() -> dict[str, bytes | None]:
    """What all files hold, by their paths; None for a folder."""
    return {path.as_posix(): None if path.is_dir() else path.read_bytes() for path in Path().rglob("*")}


NOT_HERE = "this server trains no run {}; a training that was started elsewhere is stopped by Ctrl-C there"


@pytest.mark.posix("SIGTERM asks a process to end, which Windows does not have")
def test_a_training_on_a_text_is_shown_stopped_and_continued(processes):
    folder = RUNS_DIR / "first.1"
    with client_of(None) as client:
        response = start(client, name="first.1", text=TEXT, preset="cpu", options={**LONG, "sample_interval": 5})
        assert response.status_code == 201, response.text
        begun = response.json()["training"]
        assert (begun["name"], begun["is_running"], begun["exit_status"]) == ("first.1", True, None)
        assert (folder / "first.1.txt").read_bytes() == TEXT.encode()
        assert os.getsid(processes[0].pid) == processes[0].pid, "Ctrl-C in the terminal of the server reaches its own"
        wait_for(lambda: records_of(client, "first.1", "sample"))
        assert records_of(client, "first.1", "sample")[0]["step"] == 5
        wait_for(lambda: [record for record in records_of(client, "first.1", "checkpoint") if record["step"] >= 10])
        cursor = client.get("/api/runs/first.1/records").json()["cursor"]
        wait_for(lambda: client.get("/api/runs/first.1/records", params={"after": cursor}).json()["records"])
        run = run_of(client, "first.1")
        assert run is not None
        assert (run["state"], run["max_iters"], run["is_finished"]) == ("training", 100_000, False)
        assert b"training runs/first.1 to step 100000" in (folder / "training.log").read_bytes()
        assert training_of(client)["log"]

        with client_of(None) as other:
            assert training_of(other) is None
            run = run_of(other, "first.1")
            assert run is not None
            assert run["state"] == "training"
            assert error_of(other.post("/api/runs/first.1/stop"), 400) == NOT_HERE.format("first.1")
            assert "another process trains first.1" in error_of(other.post("/api/runs/first.1/resume", json={}), 409)
        assert (len(processes), processes[0].poll()) == (1, None)

        stopped = client.post("/api/runs/first.1/stop")
        assert (stopped.status_code, stopped.json()["training"]["name"]) == (200, "first.1")
        wait_for(lambda: processes[0].poll() is not None)
        run, stopped = run_of(client, "first.1"), training_of(client)
        assert run is not None
        step = run["step"]
        assert run["state"] == "interrupted"
        assert (stopped["is_running"], stopped["exit_status"], "interrupted" in stopped["log"]) == (False, 143, True)
        assert (step, "first.1/last") in checkpoints_of(run)
        assert [path.stem for path in early_weights_in(folder)][:2] == ["early_000005", "early_000010"]
        assert {"first.1/early_000005", "first.1/early_000010"} <= {*run["models"]}
        assert error_of(client.post("/api/runs/first.1/stop"), 400) == NOT_HERE.format("first.1")

        printed = (folder / "training.log").read_bytes()
        response = client.post("/api/runs/first.1/resume", json={"options": {"max_iters": step + 3}})
        assert response.status_code == 201, response.text
        assert response.json()["training"]["is_running"]
        wait_for(lambda: processes[1].poll() is not None)
        run, ended = run_of(client, "first.1"), training_of(client)
        assert run is not None
        assert (run["state"], run["step"], run["max_iters"]) == ("finished", step + 3, step + 3)
        assert run["verdict"]
        assert (ended["exit_status"], ended["name"]) == (0, "first.1")
        assert f"from step {step} to step {step + 3}" in ended["log"]
        assert "\r" not in ended["log"]
        assert ended["log"].endswith("s of training\nruns/first.1")
        assert (folder / "training.log").read_bytes().startswith(printed)
        answer = client.post("/v1/completions", json={"model": "first.1", "prompt": "9 green", "max_tokens": 5})
        assert answer.status_code == 200, answer.text
        assert client.get("/api/options").json()["datasets"][-1] == "first.1"
    assert len(processes) == 2


def test_a_training_that_fails_shows_its_status_and_its_error(processes):
    with client_of(None) as client:
        assert start(client, name="short", text="abc").status_code == 201
        wait_for(lambda: processes[0].poll() is not None)
        training = training_of(client)
        assert not training["is_running"]
        assert (training["name"], training["exit_status"]) == ("short", 2)
        assert training["log"].startswith("error: runs/short/short.txt has 3 characters; at least 11 are needed")
        assert training["log"] == (RUNS_DIR / "short" / "training.log").read_text(encoding="utf-8").strip()
        assert client.get("/api/runs").json()["runs"] == []
        assert sorted(path.name for path in (RUNS_DIR / "short").iterdir()) == ["short.txt", "training.log"]


def test_a_training_outlives_the_server_that_started_it(commands):
    with client_of(None) as client:
        assert start(client, name="a", text="some text").status_code == 201
    assert commands[0].status is None
    assert commands[0].options["start_new_session"] is True
    with client_of(None) as client:
        assert training_of(client) is None
        assert start(client, name="b", text="some text").status_code == 201
    assert [process.status for process in commands] == [None, None]


def test_the_command_has_the_text_the_options_and_what_the_page_shows(commands):
    with client_of(None) as client:
        options = {"max_iters": 7, "learning_rate": 0.5, "bias": True, "tokenizer": "byte"}
        assert start(client, name="a", text="some text", preset="cpu", options=options).status_code == 201
        assert options_of(commands[0]) == {
            **{"out_dir": "runs/a", "dataset": "runs/a/a.txt", "preset": "cpu"},
            **{"sample_interval": "50", "keep_early": str(KEPT_EARLY)},
            **{"max_iters": "7", "learning_rate": "0.5", "bias": "True", "tokenizer": "byte"},
        }
        commands[0].status = 0
        assert start(client, name="b", dataset="python_docs", options={"keep_early": 0}).status_code == 201
        assert options_of(commands[1]) == {
            "out_dir": "runs/b",
            "dataset": "python_docs",
            "sample_interval": "50",
            "keep_early": "0",
        }
    assert [path.name for path in (RUNS_DIR / "b").iterdir()] == ["training.log"]
    assert not DATA_DIR.exists()


def test_a_run_in_any_folder_is_continued_there(commands, text_file):
    ng.train("bottles.txt", **{**TINY, "max_iters": 2}, out_dir="elsewhere/a")
    with client_of("elsewhere/a") as client:
        response = client.post("/api/runs/a/resume", json={"options": {"max_iters": 9, "max_seconds": 1.5}})
        assert response.status_code == 201
        resumed = {"out_dir": "elsewhere/a", "init_from": "resume", "keep_early": str(KEPT_EARLY)}
        assert options_of(commands[0]) == {**resumed, "max_iters": "9", "max_seconds": "1.5"}
        assert Path("elsewhere/a/training.log").exists()
        commands[0].status = 0
        assert client.post("/api/runs/a/resume", json={}).status_code == 201
        assert options_of(commands[1]) == resumed


def test_a_prepared_dataset_is_trained_on_by_its_name(commands, text_file):
    ng.prepare("bottles.txt")
    Path("data/not prepared").mkdir()
    with client_of(None) as client:
        assert client.get("/api/options").json()["datasets"] == ["shakespeare_char", "python_docs", "bottles"]
        assert start(client, name="a", dataset="bottles").status_code == 201
        assert options_of(commands[0])["dataset"] == "data/bottles"


TAKEN, SIXTY = "taken", "n" * 60


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"name": TAKEN}, "name", "runs/taken exists already; give another `name`"),
        *(
            ({"name": name}, "name", "`name` must have 1 to 60 characters: letters without accents")
            for name in ["", "../x", "a/b", "a\\b", "é", SIXTY + "n", "CON", "con.txt", "lpt1", ".", "..", ".hidden",
                         "a.", "a b", "a\n", "a\0", "/tmp/x", "~", "C:x", "名", None]
        ),
        ({"name": 3}, "name", "`name` must be a text"),
        ({"text": "", "dataset": "nothing"}, "dataset", r"there is no dataset 'nothing' here; give one of shakespeare"),
        ({"text": "", "dataset": "../x"}, "dataset", "there is no dataset '../x' here"),
        ({"text": "", "dataset": "/etc/passwd"}, "dataset", "there is no dataset"),
        ({"text": "", "dataset": "https://a.example/x.txt"}, "dataset", "there is no dataset"),
        ({"text": None, "dataset": "bottles.txt"}, "dataset", "there is no dataset"),
        ({"dataset": "python_docs"}, "text", "give a `text` to train on, or the name of a `dataset`"),
        ({"text": ""}, "text", "give a `text` to train on, or the name of a `dataset`"),
        ({"text": None}, "text", "give a `text` to train on"),
        ({"text": 3}, "text", "`text` must be a text"),
        ({"text": ["a"]}, "text", "`text` must be a text"),
        ({"dataset": 3}, "dataset", "`dataset` must be a text"),
        ({"preset": "huge"}, "preset", "there is no preset 'huge'; give one of "),
        ({"preset": 3}, "preset", "`preset` must be a text"),
        ({"options": {"n_layers": 3}}, "options", "the option 'n_layers' is not known here; give some of "),
        *(
            ({"options": {name: value}}, "options", f"the option '{name}' is not known here; give some of ")
            for name, value in [("out_dir", "x"), ("dataset", "x"), ("init_from", "resume"), ("trace", 2),
                                ("device", "cpu"), ("config", "x"), ("overwrite", True), ("compile", True), ("", 1),
                                ("preset", "cpu")]
        ),
        ({"options": {"n_layer": 0}}, "n_layer", "`n_layer=0` is an invalid value: must be a whole number, from 1"),
        ({"options": {"n_layer": "3"}}, "n_layer", "`n_layer='3'` is an invalid value: must be a whole number"),
        ({"options": {"n_layer": 3.0}}, "n_layer", "`n_layer=3.0` is an invalid value"),
        ({"options": {"n_layer": True}}, "n_layer", "`n_layer=True` is an invalid value"),
        ({"options": {"n_layer": None}}, "n_layer", "`n_layer=None` is an invalid value"),
        ({"options": {"n_layer": [3]}}, "n_layer", "is an invalid value"),
        ({"options": {"bias": "True"}}, "bias", "`bias='True'` is an invalid value: must be True or False"),
        ({"options": {"learning_rate": True}}, "learning_rate", "is an invalid value: must be a number"),
        ({"options": {"learning_rate": 10**400}}, "learning_rate", "is an invalid value: must be a number"),
        ({"options": {"learning_rate": float("nan")}}, "learning_rate", "is an invalid value: must be a number"),
        ({"options": {"tokenizer": "words"}}, "tokenizer", "is an invalid value: must be text, one of auto"),
        ({"options": {"max_iters": 5, "keep_early": -1}}, "keep_early", "is an invalid value: must be a number, from"),
        ({"options": []}, "options", "`options` must be an object, such as {\"max_iters\": 100}"),
        ({"options": "--out_dir=x"}, "options", "`options` must be an object"),
        ({"dataset_path": "x"}, "dataset_path", "unknown field 'dataset_path'; did you mean dataset"),
        ({"out_dir": "x"}, "out_dir", "unknown field 'out_dir'"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_a_request_that_is_not_valid_is_refused_and_starts_nothing(commands, fields, param, message):
    make_run(TAKEN)
    before = all_files()
    with client_of(None) as client:
        body = json.dumps({"name": "a", "text": "some text", **fields})
        response = client.post("/api/trainings", content=body)
        assert message in error_of(response, 400)
        assert response.json()["error"]["param"] == param
        assert client.get("/api/runs").json()["training"] is None
    assert commands == []
    assert all_files() == before


@pytest.mark.parametrize("name", ["a", "A-1_b.c", SIXTY, "train", "-x", "9"])
def test_other_names_are_accepted(commands, name):
    with client_of(None) as client:
        assert start(client, name=name, text="some text").status_code == 201
        assert f"--out_dir=runs/{name}" in commands[0].command
        assert (RUNS_DIR / name / f"{name}.txt").read_text(encoding="utf-8") == "some text"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (
            {"options": {"n_layer": 2}},
            "options",
            "the option 'n_layer' is not known here; give some of max_iters, max_",
        ),
        ({"options": {"out_dir": "x"}}, "options", "is not known here"),
        ({"options": {"max_iters": 0}}, "max_iters", "`max_iters=0` is an invalid value"),
        ({"options": {"max_iters": "9"}}, "max_iters", "`max_iters='9'` is an invalid value"),
        ({"options": 9}, "options", "`options` must be an object"),
        ({"max_iters": 9}, "max_iters", "unknown field 'max_iters'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_to_continue_that_is_not_valid_is_refused(commands, body, param, message):
    make_run("a")
    with client_of(None) as client:
        response = client.post("/api/runs/a/resume", json=body)
        assert message in error_of(response, 400)
        assert response.json()["error"]["param"] == param
    assert commands == []
    assert not (RUNS_DIR / "a" / "training.log").exists()


@pytest.mark.parametrize("path", ["/api/trainings", "/api/runs/a/resume"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", rb'{"name": "\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(commands, path, body):
    with client_of(None) as client:
        assert "JSON" in error_of(client.post(path, content=body), 400)
    assert commands == []


def test_a_text_may_be_larger_than_other_bodies_up_to_a_limit(commands, monkeypatch):
    from nanogpt_lite.http_api import request_body

    assert training_request.MAX_TEXT_BYTES > request_body.MAX_BODY
    monkeypatch.setattr(training_request, "MAX_TEXT_BYTES", 4000)
    monkeypatch.setattr(request_body, "MAX_BODY", 1000)
    with client_of(None) as client:
        message = error_of(start(client, name="a", text="x" * 4000), 413)
        assert message == "the body is too large; send at most 4,000 bytes"
        assert all_files() == {}
        assert start(client, name="a", text="x" * 3900).status_code == 201
        assert (RUNS_DIR / "a" / "a.txt").stat().st_size == 3900


def test_what_a_failed_start_has_left_is_used_again_with_another_text(commands):
    folder = RUNS_DIR / "a"
    with client_of(None) as client:
        assert start(client, name="a", text="old text").status_code == 201
        commands[0].status = 2
        (folder / "training.log").write_text("error: too short\n", encoding="utf-8")
        assert start(client, name="a", text="new text").status_code == 201
        assert "--dataset=runs/a/a.txt" in commands[1].command
        contents = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert contents == {"a.txt": b"new text", "training.log": b""}
        commands[1].status = 2
        assert start(client, name="a", dataset="python_docs").status_code == 201
        assert not (folder / "a.txt").exists(), "the text of another training"
        commands[2].status = 0
        (folder / "metrics.jsonl").touch()
        assert error_of(start(client, name="a", text="new text"), 400).startswith("runs/a exists already")
    with client_of(None) as client:  # another server, which does not know what became of the training
        (folder / "metrics.jsonl").unlink()
        assert error_of(start(client, name="a", text="new text"), 400).startswith("runs/a exists already")


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "best.safetensors", "early_000005.safetensors", LOCK_FILE, "b.txt", "A.log", "folder/x"]
)
def test_a_folder_with_any_other_file_is_refused_and_stays_as_it_is(commands, name):
    for path in (RUNS_DIR / "a" / name, RUNS_DIR / "a" / "a.txt", RUNS_DIR / "a" / "training.log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old", encoding="utf-8")
    before = all_files()
    with client_of(None) as client:
        for fields in ({"text": "new text"}, {"dataset": "python_docs"}):
            response = start(client, name="a", **fields)
            assert error_of(response, 400) == "runs/a exists already; give another `name`"
            assert response.json()["error"]["param"] == "name"
    assert (commands, all_files()) == ([], before)


def test_a_run_that_was_continued_is_not_replaced_although_it_has_no_metrics(commands):
    folder = RUNS_DIR / "a"
    folder.mkdir(parents=True)
    for name in ("a.txt", "last.safetensors"):
        (folder / name).write_text("old", encoding="utf-8")
    with client_of(None) as client:
        assert client.post("/api/runs/a/resume", json={}).status_code == 201
        commands[0].status = 2
        assert error_of(start(client, name="a", text="new text"), 400).startswith("runs/a exists already")
    assert (folder / "a.txt").read_text(encoding="utf-8") == "old"


def test_a_mistake_leaves_what_is_said_of_the_training_before(commands):
    with client_of(None) as client:
        assert start(client, name="a", text="some text").status_code == 201
        commands[0].status = 0
        error_of(start(client, name="b", dataset="nothing"), 400)
        assert training_of(client)["name"] == "a"


def test_a_text_is_stored_as_it_was_sent(commands):
    text = "Äpfel\r\nüber\tßtraße €uro\u2028 😀\n\n"
    with client_of(None) as client:
        assert start(client, name="a", text=text).status_code == 201
    assert (RUNS_DIR / "a" / "a.txt").read_bytes() == text.encode()
    assert sorted(path.name for path in (RUNS_DIR / "a").iterdir()) == ["a.txt", "training.log"]
    assert not DATA_DIR.exists()


def test_one_training_runs_at_a_time_and_the_next_one_after_its_end(commands):
    make_run("c", START)
    with client_of(None) as client:
        assert start(client, name="a", text="some text").status_code == 201
        append(RUNS_DIR / "a" / "metrics.jsonl", START)
        before = all_files()
        busy = "the training of a is still running; stop it first, or wait"
        for fields in ({"name": "b"}, {"name": "a"}, {"name": "c"}):  # before it looks at the name
            assert error_of(start(client, text="some text", **fields), 409) == busy
        assert error_of(start(client, name="b", dataset="nothing"), 409) == busy
        for name in ("a", "c"):
            assert error_of(client.post(f"/api/runs/{name}/resume", json={}), 409) == busy
        assert error_of(client.post("/api/runs/c/stop"), 400) == NOT_HERE.format("c")
        assert (len(commands), all_files()) == (1, before)
        assert client.post("/api/runs/a/stop").json()["training"]["exit_status"] == -15
        assert start(client, name="b", text="some text").status_code == 201
        assert training_of(client)["name"] == "b"
        assert error_of(client.post("/api/runs/a/stop"), 400) == NOT_HERE.format("a")
        assert training_of(client)["is_running"]


def test_a_run_that_is_not_known_cannot_be_stopped(commands):
    with client_of(None) as client:
        message = "there is no run 'nobody'; /api/runs lists those that exist"
        assert error_of(client.post("/api/runs/nobody/stop"), 404) == message
        assert start(client, name="a", text="some text").status_code == 201
        assert error_of(client.post("/api/runs/nobody/stop"), 404) == message
        assert commands[0].status is None


def test_a_run_that_another_process_trains_is_not_continued_and_its_log_stays(commands):
    make_run("a", START)
    log = RUNS_DIR / "a" / "training.log"
    log.write_bytes(b"printed\n")
    with client_of(None) as client:
        with lock_run(RUNS_DIR / "a"):
            before = all_files()
            message = error_of(client.post("/api/runs/a/resume", json={}), 409)
            assert message == "another process trains a; press Ctrl-C there first, or wait"
            assert (commands, all_files(), training_of(client)) == ([], before, None)
        assert client.post("/api/runs/a/resume", json={}).status_code == 201
    assert log.read_bytes() == b"printed\n"


def test_the_log_of_a_run_that_is_continued_grows_at_its_end(commands):
    make_run("a", START)
    log = RUNS_DIR / "a" / "training.log"
    log.write_bytes(b"printed\n")

    def print_more(command, **options):
        options["stdout"].write(b"continued\n")
        commands.append(NoProcess(command, **options))
        return commands[-1]

    with pytest.MonkeyPatch.context() as patch, client_of(None) as client:
        patch.setattr(trainings.subprocess, "Popen", print_more)
        answer = client.post("/api/runs/a/resume", json={}).json()
        assert commands[0].options["stderr"] == subprocess.STDOUT
        assert commands[0].options["stdin"] == subprocess.DEVNULL
    assert answer["training"]["log"] == "printed\ncontinued"
    assert log.read_bytes() == b"printed\ncontinued\n"


def refuse(*arguments, **options):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")


@contextlib.contextmanager
def runs_is_a_file():
    RUNS_DIR.write_text("no folder")
    yield
    RUNS_DIR.unlink()


@contextlib.contextmanager
def no_process_is_started():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings.subprocess, "Popen", refuse)
        yield


@contextlib.contextmanager
def no_text_is_written():
    """As on a full disk: the folder is created, and the text is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_replace", refuse)
        yield


@contextlib.contextmanager
def no_folder_is_created():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        yield


@contextlib.contextmanager
def the_log_cannot_be_written():
    path = RUNS_DIR / "a" / "training.log"
    path.mkdir(parents=True)  # the folder of the run may be there
    yield
    path.rmdir()


FAULTS = [runs_is_a_file, no_process_is_started, no_text_is_written, no_folder_is_created]
REMEDY = "; make room on the disk, or start the server in a folder that may be written to"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_that_the_system_does_not_start_is_explained_and_may_be_started_later(commands, fault):
    with client_of(None) as client:
        with fault():
            for _ in range(2):
                response = start(client, name="a", text="first text")
                message = error_of(response, 503)
                assert message.startswith("the training cannot be started (")
                assert message.endswith(REMEDY)
                assert response.json()["error"]["type"] == "server_error"
        assert (commands, training_of(client)) == ([], None)
        assert start(client, name="a", text="second text").status_code == 201
        assert (training_of(client)["name"], len(commands)) == ("a", 1)
    contents = {path.name: path.read_bytes() for path in (RUNS_DIR / "a").iterdir()}
    assert contents == {"a.txt": b"second text", "training.log": b""}


@pytest.mark.parametrize("fault", [no_process_is_started, the_log_cannot_be_written])
def test_a_run_that_the_system_does_not_continue_is_explained_and_may_be_continued_later(commands, fault):
    make_run("a", START)
    with client_of(None) as client:
        with fault():
            message = error_of(client.post("/api/runs/a/resume", json={}), 503)
            assert message.startswith("the training cannot be started (")
            assert message.endswith(REMEDY)
        assert (commands, training_of(client)) == ([], None)
        assert client.post("/api/runs/a/resume", json={}).status_code == 201


def test_a_server_that_may_not_train_refuses_all_three(commands):
    make_run("a")
    before = all_files()
    with client_of(None, training=False) as client:
        responses = [
            start(client, name="b", text="some text"),
            client.post("/api/runs/a/resume", json={}),
            client.post("/api/runs/a/stop"),
        ]
        for response in responses:
            message = error_of(response, 403)
            assert message.startswith("this server starts no trainings; use ")
            assert "nanogpt-lite train" in message
        assert client.get("/api/runs").json()["runs"][0]["name"] == "a"
    assert (commands, all_files()) == ([], before)


@pytest.mark.parametrize("path", ["/api/trainings", "/api/runs/a/resume", "/api/runs/a/stop"])
def test_trainings_are_started_and_stopped_by_post_from_the_page_alone(commands, path):
    make_run("a")
    with client_of(None) as client:
        assert client.get(path).status_code == 405
        body = {"name": "b", "text": "some text"}
        for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
            assert client.post(path, json=body, headers=headers).status_code == 403
        assert client.post(path, json=body, headers={"Host": "evil.example"}).status_code == 421
    assert commands == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ""),
        (b"step 1\nstep 2\n", "step 1\nstep 2"),
        (b"10%\r20%\r30%\nstep 1\n", "30%\nstep 1"),
        ("é".encode() * 3000, "é" * 2000),
        (b"x" + "é".encode() * 3000, "é" * 2000),
        ("é".encode() * 2000 + b"a", "\N{REPLACEMENT CHARACTER}" + "é" * 1999 + "a"),  # cut inside of a character
        (b"\xff\xfe\n", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"first\n" + b"9" * 4000, "9" * 4000),
    ],
    ids=range(8),
)
def test_the_log_is_the_end_of_what_was_printed(commands, content, expected):
    with client_of(None) as client:
        assert start(client, name="a", text="some text").status_code == 201
        assert training_of(client)["log"] == ""
        (RUNS_DIR / "a" / "training.log").write_bytes(content)
        assert training_of(client)["log"] == expected
        (RUNS_DIR / "a" / "training.log").unlink()
        assert training_of(client)["log"] == ""
