"""What the page shows of runs whose files are unusual, or change while they are looked at."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from example_records import RESULT, START, done_record, eval_record, step_record
from record_files import append, make_run
from served_app import client_of
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.config.options import ServeConfig
from nanogpt_lite.runs.run_files import LOCK_FILE, lock_run
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.tracking.records import SampleRecord

run_list = pytest.importorskip("nanogpt_lite.server.run_list", reason="needs starlette (the extra serve)")
RunCatalog = pytest.importorskip("nanogpt_lite.server.run_catalog").RunCatalog
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checkpoints_of(run: dict[str, Any]) -> list[tuple[int, str]]:
    return [(checkpoint["step"], checkpoint["model"]) for checkpoint in run["checkpoints"]]


def run_of(client, name: str) -> dict[str, Any] | None:
    return next((run for run in client.get("/api/runs").json()["runs"] if run["name"] == name), None)


SURROGATE = "half \ud83d of a pair"


def test_a_result_without_a_verdict_is_a_run_without_one():
    path = make_run("a", START, RESULT)
    with client_of(None) as client:
        run = run_of(client, "a")
        assert run is not None
        assert run["verdict"] == "normal"
        older = {name: value for name, value in RESULT.to_json().items() if name != "verdict"}
        path.write_text(f"{json.dumps(START.to_json())}\n{json.dumps(older)}\n", encoding="utf-8")
        run = run_of(client, "a")
        assert run is not None
        assert (run["verdict"], run["step"], run["max_iters"]) == (None, 5, 5000)


def test_half_of_a_surrogate_pair_in_records_is_shown():
    sample = SampleRecord(step=3, text=SURROGATE)
    path = make_run("a", START, sample)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**RESULT.to_json(), "verdict": SURROGATE}) + "\n")
    with client_of(None) as client:
        run = run_of(client, "a")
        assert run is not None
        assert run["verdict"] == SURROGATE
        response = client.get("/api/runs/a/records")
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.json()["records"] == metrics_file.read_metrics(path)
        assert response.json()["records"][1]["text"] == SURROGATE


@pytest.mark.linux("other systems have no such names")
def test_a_run_in_a_folder_whose_name_is_no_text_is_shown(text_file):
    parent = Path(os.fsdecode(b"caf\xe9"))
    ng.train("bottles.txt", **{**TINY, "max_iters": 2}, out_dir=parent / "a")
    with client_of(parent / "a") as client:
        response = client.get("/api/runs")
        assert response.status_code == 200
        (run,) = response.json()["runs"]
        assert (run["name"], run["folder"], run["models"]) == ("a", "caf?/a", ["a", "a/last"])
        assert client.get("/api/runs/a/records").json()["records"]


@pytest.fixture
def reads(monkeypatch):
    """The metrics files that are read as a whole."""
    paths = []
    read_metrics = metrics_file.read_metrics

    def read(path):
        paths.append(path)
        return read_metrics(path)

    monkeypatch.setattr(metrics_file, "read_metrics", read)
    return paths


def test_a_metrics_file_is_read_again_when_it_has_changed(reads):
    path = make_run("a", START, step_record(1))
    reads.clear()

    def step_of(client) -> int:
        run = run_of(client, "a")
        assert run is not None
        return run["step"]

    with client_of(None) as client:
        assert [step_of(client), step_of(client)] == [1, 1]
        assert len(reads) == 1, "it has not changed"
        modified = path.stat().st_mtime_ns
        content = path.read_bytes()
        path.write_bytes(content + json.dumps(step_record(2).to_json()).encode() + b"\n")
        os.utime(path, ns=(modified, modified))
        assert [step_of(client), step_of(client)] == [2, 2], "longer, at the same time"
        path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 7'))
        os.utime(path, ns=(modified + 10**9, modified + 10**9))
        assert [step_of(client), step_of(client)] == [7, 7], "as long as before, later"
        assert len(reads) == 3
        path.write_bytes(content)  # as a resume does
        assert step_of(client) == 1
        path.unlink()
        assert run_of(client, "a") is None


def test_the_metrics_of_several_runs_are_their_own(reads):
    for number in range(5):
        make_run(f"run-{number}", START, eval_record(number))
    reads.clear()
    with client_of(None) as client:
        for _ in range(2):
            runs = client.get("/api/runs").json()["runs"]
            assert {run["name"]: run["step"] for run in runs} == {f"run-{number}": number for number in range(5)}
    assert len(reads) == 5


def test_a_run_that_ends_while_it_is_looked_at_is_not_unfinished(monkeypatch):
    """It ends after the lock or the records were read, whichever comes first."""
    path = make_run("a", START)
    ending = contextlib.ExitStack()
    ending.enter_context(lock_run(path.parent))

    def and_it_ends(read):
        def wrapped(*arguments):
            result = read(*arguments)
            if path.parent.joinpath(LOCK_FILE).exists():
                append(path, done_record(5))
                ending.close()
            return result

        return wrapped

    with client_of(None) as client:
        monkeypatch.setattr(run_list, "is_training", and_it_ends(run_list.is_training))
        monkeypatch.setattr(run_list, "_read_progress", and_it_ends(run_list._read_progress))
        states = [run["state"] for _ in range(2) for run in client.get("/api/runs").json()["runs"]]
    assert states in (["training", "finished"], ["finished", "finished"])


def test_evaluation_without_a_train_loss_is_no_record(text_file):
    """As of a file that was edited: the other runs are still listed."""
    run = ng.train("bottles.txt", **TINY, out_dir="runs/a")
    path = run.out_dir / "metrics.jsonl"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace('"train_loss"', '"loss"'), encoding="utf-8")
    ng.train("bottles.txt", **TINY, out_dir="runs/b")
    with client_of(None) as client:
        runs = {listed["name"]: listed for listed in client.get("/api/runs").json()["runs"]}
    assert runs["a"]["evaluations"] == []
    assert (runs["a"]["best_step"], runs["a"]["trend"]) == (None, None)
    assert len(runs["b"]["evaluations"]) == 2


def test_trend_is_known_from_the_second_evaluation_on(text_file):
    for name, max_iters in (("one", 10), ("two", 20)):
        ng.train("bottles.txt", **{**TINY, "max_iters": max_iters}, out_dir=f"runs/{name}")
    with client_of(None) as client:
        runs = {listed["name"]: listed for listed in client.get("/api/runs").json()["runs"]}
    assert {name: (len(run["evaluations"]), run["trend"]) for name, run in runs.items()} == {
        "one": (1, None),
        "two": (2, "lowest"),
    }


def test_run_whose_training_starts_is_in_training_before_its_folder_is_locked(text_file):
    for name in ("a", "b"):
        ng.train("bottles.txt", **{**TINY, "max_iters": 1}, out_dir=f"runs/{name}")
    catalog = RunCatalog(None, ServeConfig())
    states = {run["name"]: run["state"] for run in run_list.describe_runs(catalog, started="a")["runs"]}
    assert states == {"a": "training", "b": "finished"}
    assert {run["state"] for run in run_list.describe_runs(catalog)["runs"]} == {"finished"}


def test_early_weights_without_another_checkpoint_are_models(text_file):
    ng.train("bottles.txt", **{**TINY, "max_iters": 10, "keep_early": 1}, out_dir="runs/a")
    expected = ng.sample("runs/a", checkpoint="early_000005", start="9", max_new_tokens=9, device="cpu", threads=1)
    for name in ("best", "last"):
        Path("runs/a", f"{name}.safetensors").unlink()
    names = ["a/early_000005", "a/early_000010"]
    with client_of(None) as client:
        content = client.get("/api/runs").json()
        assert content["models"] == names == [model["id"] for model in client.get("/v1/models").json()["data"]]
        (run,) = content["runs"]
        assert run["models"] == names
        assert checkpoints_of(run) == [(5, names[0]), (10, names[1])]
        response = client.post("/v1/completions", json={"model": names[0], "prompt": "9", "max_tokens": 9})
        assert response.json()["choices"][0]["text"] == expected[0].removeprefix("9")
        missing = client.post("/v1/completions", json={"model": "a"})
        assert (missing.status_code, "there is no model 'a'" in missing.json()["error"]["message"]) == (404, True)
