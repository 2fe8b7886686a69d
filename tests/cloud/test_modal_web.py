"""The App with the web endpoint, deployed on the local Modal: a run answers by HTTP, in a container."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
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
def deployed(service, tmp_path, monkeypatch, request):
    """Deploy the App, with these environment variables if the fixture is used indirectly; its URL."""
    environment = {**environment_with_modal_alone(service.folder / "alone"), **getattr(request, "param", {})}
    done = service.modal("deploy", TARGET, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "serving on a CPU: one container at most, $0.13 an hour while it runs; 5 min after the last" in done.stdout
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
    assert [model["id"] for model in json.loads(ask(deployed, "/v1/models")[1])["data"]] == ["new"], "one run"
    assert ask(deployed, "/v1/completions", {"prompt": "é"})[0].status == 400
    (container,) = service.containers
    assert (container.function, container.cpu, container.memory, container.gpu_type) == ("Web.*", 2, 4096, "")
    assert container.max_inputs == 100
    assert all(copy.read_only for copy in container.volumes.values())
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
        assert "<li>new</li>" in ask(local, "/", headers={})[1]


@pytest.mark.slow
def test_programs_of_the_page_get_the_text_of_the_command_line(runs, deployed, tmp_path):
    def here(text):
        return text.replace("https://NAME.modal.run", deployed).replace("shakespeare_char-1", "new")

    environment = {
        **os.environ,
        "KEY": PROXY_KEY["Modal-Key"],
        "SECRET": PROXY_KEY["Modal-Secret"],
        "LLM_USER_PATH": str(tmp_path),
        "NO_PROXY": "*",
        "no_proxy": "*",
    }

    def output_of(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (curl,) = [line for block in code_blocks(PAGE, "sh") for line in block.splitlines() if line.startswith("curl")]
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
    assert [model["id"] for model in json.loads(ask(deployed, "/v1/models")[1])["data"]] == ["old"]


@pytest.mark.slow
def test_volume_without_a_run_is_said_in_each_answer(service, deployed):
    for _ in range(2):
        response, content = ask(deployed, "/v1/completions", FIELDS)
        assert response.status == 503
        assert "train it: modal run modal_app.py::train" in json.loads(content)["error"]["message"]
    assert len(service.containers) == 1


@pytest.mark.slow
def test_modal_serve_answers_until_it_is_interrupted(runs, service):
    environment = environment_with_modal_alone(service.folder / "alone")
    process = service.popen_modal("serve", TARGET, env=environment)
    (url,) = service.wait_for(lambda: service.web_urls)
    response, content = ask(url, "/v1/completions", FIELDS)
    assert response.status == 200, content
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert "serving on a CPU: one container at most" in stdout
    assert "Traceback" not in stderr + stdout
    service.wait_for(lambda: all(container.end_reason for container in service.containers))
