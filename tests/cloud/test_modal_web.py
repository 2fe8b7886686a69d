"""The App with the web endpoint, deployed on the local Modal: a run answers by HTTP, in a container."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from conftest import TEXT, wait_for
from documentation import ROOT, code_blocks
from local_modal.web import PROXY_KEY
from modal_commands import APP, SMALL, VOLUME_NAME, environment_with_modal_alone, prepared, service
from served_app import server_process

import nanogpt_lite as ng

pytest.importorskip("uvicorn", reason="needs uvicorn (the extra serve)")

__all__ = ["prepared", "service"]  # fixtures

PAGE = ROOT / "docs/modal.md"
TARGET = f"{APP}::web_app"
FIELDS = {"prompt": "green", "seed": 3, "max_tokens": 60}


@pytest.fixture
def deployed(service, runs, request):
    """Deploy the App, with these environment variables if the fixture is used indirectly; its URL."""
    environment = {**environment_with_modal_alone(service.folder / "alone"), **getattr(request, "param", {})}
    done = service.modal("deploy", TARGET, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    which = "old" if "NANOGPT_WEB_RUN" in environment else "the newest run, now new,"
    device, dollars = ("a T4", "0.72") if "NANOGPT_WEB_GPU" in environment else ("a CPU", "0.13")
    cost = f"one container at most, ${dollars} an hour"
    assert f"serving {which} on {device}: {cost} while it runs; 5 min after the last request it stops" in done.stdout
    (endpoint,) = service.web_urls
    return endpoint


@pytest.fixture
def runs(service, tmp_path, monkeypatch):
    """The folders of two runs on the Volume, of which the second is the newer one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bottles.txt").write_text(TEXT, encoding="utf-8")
    folders = [service.volume(VOLUME_NAME) / "runs" / name for name in ("old", "new")]
    for seed, folder in enumerate(folders):
        ng.train("bottles.txt", preset="cpu", out_dir=folder, max_iters=4, seed=seed, **SMALL)
    long_ago = time.time() - 60  # Modal knows whole seconds
    for path in folders[0].iterdir():
        os.utime(path, (long_ago, long_ago))
    return folders


def ask(url, path, fields=None, *, headers=PROXY_KEY):
    """An answer, and its content."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("POST" if fields else "GET", path, json.dumps(fields) if fields else None, dict(headers))
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


def streamed_text(content):
    events = re.findall(r"^data: (\{.*)$", content, re.MULTILINE)
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def test_deployed_run_answers_with_the_text_of_the_command_line(runs, deployed, service):
    expected = ng.sample(runs[1], device="cpu", start="green", seed=3, max_new_tokens=60)[0]
    response, content = ask(deployed, "/v1/models", headers={})
    assert (response.status, "missing credentials" in content) == (401, True)
    assert service.containers == [], "Modal's proxy refuses before a container starts"

    response, content = ask(deployed, "/v1/completions", FIELDS)
    assert response.status == 200, content
    assert FIELDS["prompt"] + json.loads(content)["choices"][0]["text"] == expected
    response, content = ask(deployed, "/v1/completions", {**FIELDS, "stream": True})
    assert FIELDS["prompt"] + streamed_text(content) == expected
    assert content.endswith("data: [DONE]\n\n")
    models = [model["id"] for model in json.loads(ask(deployed, "/v1/models")[1])["data"]]
    assert models == ["new", "new/last"], "one run"
    (run,) = json.loads(ask(deployed, "/api/runs")[1])["runs"]
    assert (run["step"], run["is_finished"]) == (4, True)
    assert ask(deployed, "/v1/completions", {"prompt": "é"})[0].status == 400
    (container,) = service.containers
    assert (container.function, container.cpu, container.memory, container.gpu_type) == ("Web.*", 2, 4096, "")
    assert container.max_inputs == 150
    assert [copy.read_only for copy in container.volumes.values()] == [True]
    (definition,) = [request.function for name, request in service.calls if name == "FunctionCreate"]
    assert definition.checkpointing_enabled, "it has a memory snapshot"
    assert definition.autoscaler_settings.max_containers == 1
    assert "starlette==" in service.image_of(container)
    assert service.failures == []


def test_local_server_stands_before_the_deployed_one(runs, deployed, monkeypatch):
    expected = ng.sample(runs[1], device="cpu", start="green", seed=3, max_new_tokens=60)[0]
    with server_process(None, "--remote", deployed) as (local, _):
        response, content = ask(local, "/v1/models", headers={})
        assert response.status == 401
        assert "set MODAL_PROXY_TOKEN_ID and MODAL_PROXY_TOKEN_SECRET" in content
    monkeypatch.setenv("MODAL_PROXY_TOKEN_ID", PROXY_KEY["Modal-Key"])
    monkeypatch.setenv("MODAL_PROXY_TOKEN_SECRET", PROXY_KEY["Modal-Secret"])
    with server_process(None, "--remote", deployed) as (local, _):
        assert (
            FIELDS["prompt"] + json.loads(ask(local, "/v1/completions", FIELDS, headers={})[1])["choices"][0]["text"]
            == expected
        )
        _, content = ask(local, "/v1/completions", {**FIELDS, "stream": True}, headers={})
        assert FIELDS["prompt"] + streamed_text(content) == expected
        assert 'src="/page/main.js"' in ask(local, "/", headers={})[1]
        runs = json.loads(ask(local, "/api/runs", headers={})[1])
        assert runs["models"][0] == "new"
        options = json.loads(ask(local, "/api/options", headers={})[1])
        assert options["can_train"] is False, "a container has no disk to train to"


@pytest.mark.slow
def test_programs_of_the_page_get_the_text_of_the_command_line(runs, deployed, tmp_path):
    def here(text):
        return text.replace("https://NAME.modal.run", deployed).replace("shakespeare_char-1", "new")

    environment = {
        **os.environ,
        "MODAL_PROXY_TOKEN_ID": PROXY_KEY["Modal-Key"],
        "MODAL_PROXY_TOKEN_SECRET": PROXY_KEY["Modal-Secret"],
        "LLM_USER_PATH": str(tmp_path),
        "NO_PROXY": "*",
        "no_proxy": "*",
    }

    def output_of(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (curl,) = [block for block in code_blocks(PAGE, "sh") if block.startswith("curl")]
    command = here(curl).replace("To be", "green").replace("}'", ', "temperature": 0}\'')
    (greedy,) = ng.sample(runs[1], device="cpu", start="green", temperature=0.0)
    assert "green" + json.loads(output_of("bash", "-c", command))["choices"][0]["text"] == greedy

    (program,) = [block for block in code_blocks(PAGE, "python") if "openai" in block]
    (seeded,) = ng.sample(runs[1], device="cpu", start="green", seed=7)
    assert "green" + output_of(sys.executable, "-c", here(program).replace("To be", "green")) == seeded + "\n"

    (models,) = code_blocks(PAGE, "yaml")
    models = here(models).replace("wk-...", PROXY_KEY["Modal-Key"]).replace("ws-...", PROXY_KEY["Modal-Secret"])
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    llm = [sys.executable, "-m", "llm", "prompt", "-m", "shakespeare", "--key", "none", "--no-log", "green"]
    assert "green" + output_of(*llm, "-o", "temperature", "0") == greedy + "\n"


@pytest.mark.slow
def test_client_that_goes_away_ends_its_generation_in_the_container(runs, deployed):
    assert ask(deployed, "/health")[0].status == 200
    connection = http.client.HTTPConnection(urlsplit(deployed).netloc, timeout=60)
    fields = {**FIELDS, "max_tokens": 16_384, "n": 4, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(fields), PROXY_KEY)
    connection.getresponse().read(10)
    wait_for(lambda: json.loads(ask(deployed, "/health")[1])["is_generating"])
    connection.close()
    wait_for(lambda: not json.loads(ask(deployed, "/health")[1])["is_generating"])


@pytest.mark.slow
@pytest.mark.parametrize("deployed", [{"NANOGPT_WEB_RUN": "old"}], indirect=True)
def test_run_of_the_environment_variable_is_served(runs, deployed):
    assert json.loads(ask(deployed, "/v1/models")[1])["data"][0]["id"] == "old"


@pytest.mark.slow
def test_run_that_was_deleted_is_said_in_each_answer_until_there_is_one(runs, deployed, service, tmp_path):
    for folder in runs:
        folder.rename(tmp_path / folder.name)
    for _ in range(2):
        response, content = ask(deployed, "/v1/completions", FIELDS)
        assert response.status == 503
        assert "train it: modal run modal_app.py::train" in json.loads(content)["error"]["message"]
    (tmp_path / "old").rename(runs[0])
    assert ask(deployed, "/v1/completions", FIELDS)[0].status == 200
    assert len(service.containers) == 1


@pytest.mark.slow
@pytest.mark.parametrize("deployed", [{"NANOGPT_WEB_GPU": "T4"}], indirect=True)
def test_gpu_of_the_environment_variable_is_rented(deployed, service):
    response, content = ask(deployed, "/v1/completions", FIELDS)
    assert response.status == 400
    assert "cuda" in content, "there is none here, and a rented one that does not work must be an error"
    assert [container.gpu_type for container in service.containers] == ["T4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NANOGPT_WEB_RUN": "typo"}, "there is no checkpoint of a run 'typo'; runs with one: old, new"),
        ({"NANOGPT_WEB_GPU": "T5"}, "'T5'"),
        ({"NANOGPT_WEB_GPU": "T4:2"}, "T4:2 is more than one GPU"),
    ],
)
def test_mistake_is_one_line_before_anything_is_deployed(runs, service, variables, expected):
    environment = {**environment_with_modal_alone(service.folder / "alone"), **variables}
    done = service.modal("deploy", TARGET, env=environment, timeout=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert service.web_urls == []


@pytest.mark.slow
def test_modal_serve_answers_until_it_is_interrupted(runs, service):
    environment = environment_with_modal_alone(service.folder / "alone")
    process = service.popen_modal("serve", TARGET, env=environment)
    (url,) = service.wait_for(lambda: service.web_urls)
    response, content = ask(url, "/v1/completions", FIELDS)
    assert response.status == 200, content
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert "on a CPU: one container at most" in stdout
    assert "Traceback" not in stderr + stdout
    service.wait_for(lambda: all(container.end_reason for container in service.containers))
