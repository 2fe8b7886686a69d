"""Requests that are not valid: each is refused with a status and a message that says why, in the form of the API."""

import asyncio
import json
import re

import pytest
from served_app import client_of

import nanogpt_lite as ng
from nanogpt_lite.http_api import completion_request, inspection_request
from nanogpt_lite.server import generation_queue

application = pytest.importorskip("nanogpt_lite.server.application", reason="needs starlette (the extra serve)")
request_body = pytest.importorskip("nanogpt_lite.http_api.request_body", reason="needs starlette (the extra serve)")
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")

COMPLETIONS, CHAT, INSPECT = "/v1/completions", "/v1/chat/completions", "/api/inspect"


@pytest.fixture(scope="module")
def client(shared_run):
    with client_of(shared_run, chat_template="{role}: {content}\n") as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": "é"}, None, r"prompt.*'é'"),
        ({"prompt": ""}, "prompt", "must have 1 to 100,000 characters; this one has 0"),
        ({"prompt": "9" * 100_001}, "prompt", "must have 1 to 100,000 characters; this one has 100,001"),
        ({"prompt": ["9", "8"]}, "prompt", "must be one text; send a request for each"),
        ({"prompt": [[9, 8]]}, "prompt", "must be one text"),
        ({"prompt": 9}, "prompt", "must be one text"),
        ({"max_tokens": 0}, "max_tokens", "`max_tokens=0` is an invalid value: must be a whole number, 1 or more"),
        ({"max_tokens": 1.5}, "max_tokens", "`max_tokens=1.5` is an invalid value"),
        ({"max_tokens": True}, "max_tokens", "`max_tokens=True` is an invalid value"),
        ({"max_tokens": 16_385}, "max_tokens", "too much for this server; give at most 16384"),
        ({"n": 33}, "n", "too much for this server; give at most 32"),
        ({"n": 5, "max_tokens": 16_000}, "n", "5 texts of 16000 tokens are too much .*; give at most 65536 tokens in"),
        ({"n": 32, "max_tokens": 600, "logprobs": 1}, "n", "with `logprobs`; give at most 16384 tokens in all"),
        ({"temperature": 10**400}, "temperature", "is an invalid value"),
        ({"temperature": "hot"}, "temperature", "`temperature='hot'` is an invalid value"),
        ({"temperature": -1}, "temperature", "`temperature=-1` is an invalid value"),
        ({"top_p": 2}, "top_p", "`top_p=2` is an invalid value"),
        ({"seed": -1}, "seed", "`seed=-1` is an invalid value"),
        ({"seed": 2**70}, "seed", "is an invalid value"),
        ({"stop": ""}, "stop", "must be a text that is not empty"),
        ({"stop": ["a"] * 17}, "stop", "a list of at most 16"),
        ({"stop": [1]}, "stop", "must be a text"),
        ({"logprobs": 21}, "logprobs", "a whole number from 0 to 20"),
        ({"logprobs": True}, "logprobs", "a whole number from 0 to 20"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"echo": 1}, "echo", "must be true or false"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported; leave it out"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "not supported"),
        ({"stream_options": {"usage": 1}}, "stream_options", "include_usage"),
        ({"temprature": 1}, "temprature", "unknown field 'temprature'; did you mean temperature?"),
        ({"start": "FILE:x"}, "start", "unknown field 'start'"),
        ({"model": 3}, "model", "must be a text"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("streams", [False, True])
def test_a_field_that_is_not_valid_is_named(client, fields, param, message, streams):
    fields = {"stream": True, **fields} if streams else fields
    response = client.post(COMPLETIONS, json=fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert re.search(message, error["message"]), error["message"]


@pytest.mark.parametrize(
    "fields",
    [{"presence_penalty": 0}, {"logit_bias": {}}, {"user": "me"}, {"best_of": 1}, {"suffix": None}, {"stop": []}],
)
def test_fields_that_change_nothing_are_accepted(client, fields):
    assert client.post(COMPLETIONS, json={"max_tokens": 3, **fields}).status_code == 200


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": 1, "content": "a"}],
        [{"role": "u", "content": [{"type": "image"}]}],
        ["a"],
    ],
)
def test_messages_of_a_chat_need_a_role_and_a_text(client, messages):
    response = client.post(CHAT, json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


def test_a_chat_is_written_by_the_template_and_content_is_no_template():
    messages = [
        {"role": "system", "content": "Be {role} {content}"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    text, ending = completion_request.write_chat(messages, "<{role}>{content}</s>\n")
    assert text == "<system>Be {role} {content}</s>\n<user>ab</s>\n<assistant>"
    assert ending == "</s>\n"
    assert completion_request.write_chat(messages, "<{role}>{content}</{role}>")[1] == "</assistant>"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, INSPECT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        rb'{"prompt": "\ud800"}',
        b'{"prompt": ' + b"[" * 20 + b"]" * 20 + b"}",
        rb'{"\udfff": 1}',
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"prompt": "a"',
        b"prompt=a",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_no_json_object_is_refused(client, path, body):
    response = client.post(path, content=body)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    async def receive():
        await asyncio.Event().wait()

    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.01)
    request = application.Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(application.HTTPException, match="did not arrive within") as caught:
        asyncio.run(request_body.read_object(request))
    assert caught.value.status_code == 408


def test_a_body_that_is_too_large_is_refused(client):
    response = client.post(COMPLETIONS, content=b'{"prompt": "' + b"9" * request_body.MAX_BODY + b'"}')
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": 3}, "text"),
        ({"text": "9", "top": 0}, "top"),
        ({"text": "9", "top_p": -1}, "top_p"),
        ({"text": "9", "lens": 1}, "lens"),
        ({"text": "9", "model": 1}, "model"),
        ({"text": "9", "txt": "9"}, "txt"),
        ({"text": "9" * (inspection_request.MAX_TOKENS + 1)}, "text"),
        ({"text": "9" * 1500, "attention": True}, "attention"),  # 2 heads
        ({"text": "9", "top": inspection_request.MAX_TOP + 1}, "top"),
        ({"text": "é"}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_reading_that_cannot_be_made_is_refused(client, fields, param):
    response = client.post(INSPECT, json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "name",
    ["nobody", "", "..", "../bottles-1", "bottles-1/../bottles-1", "/etc/passwd", "bottles-1/last.safetensors",
     "bottles-1\0", "runs/bottles-1", "<script>", "b" * 5000],
)  # fmt: skip
def test_a_model_that_does_not_exist_is_not_found_and_no_path(client, name):
    response = client.post(COMPLETIONS, json={"model": name})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    "path",
    ["/v1/models/nobody", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%2e%2e/%2e%2e/data", "/static/../../x",
     "/runs/bottles-1/config.json", "/..%2fREADME.md", "/v1", "/v1/completions/"],
)  # fmt: skip
def test_no_path_leads_to_a_file(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", COMPLETIONS), ("PUT", CHAT), ("DELETE", "/v1/models"), ("POST", "/")]
)
def test_another_method_is_refused(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 405
    allowed = response.headers["allow"]
    assert response.json()["error"]["message"] == f"this path cannot be asked in this way; send {allowed}"
    assert method not in allowed


def test_a_checkpoint_that_was_removed_is_not_found(shared_run, client, monkeypatch):
    gone = shared_run.out_dir.parent / "gone"
    gone.mkdir()
    (gone / "best.safetensors").write_bytes((shared_run.out_dir / "best.safetensors").read_bytes())
    submit = generation_queue.GenerationQueue.submit

    def remove_and_submit(jobs, work):
        (gone / "best.safetensors").unlink()
        return submit(jobs, work)

    monkeypatch.setattr(generation_queue.GenerationQueue, "submit", remove_and_submit)
    response = client.post(COMPLETIONS, json={"model": "gone"})
    assert response.status_code == 404
    assert "was removed" in response.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_back_and_a_stopped_one_that_it_is(client, monkeypatch):
    full, closed = generation_queue.QueueFullError, generation_queue.QueueClosedError
    for error, status, wait in ((full, 429, "2"), (closed, 503, None)):

        def refuse(*_, error=error):
            raise error

        monkeypatch.setattr(generation_queue.GenerationQueue, "submit", refuse)
        response = client.post(COMPLETIONS, json={})
        assert (response.status_code, response.headers.get("retry-after")) == (status, wait)
        assert set(response.json()) == {"error"}


def test_a_damaged_checkpoint_is_an_error_of_one_request(shared_run, client):
    bad = shared_run.out_dir.parent / "bad"
    bad.mkdir()
    content = (shared_run.out_dir / "best.safetensors").read_bytes()
    (bad / "best.safetensors").write_bytes(content[: len(content) // 2])
    response = client.post(COMPLETIONS, json={"model": "bad"})
    assert response.status_code == 400
    assert "damaged" in response.json()["error"]["message"]
    assert client.post(COMPLETIONS, json={"max_tokens": 3}).status_code == 200


def test_names_of_runs_and_texts_never_become_html(trained):
    ng.train("bottles.txt", init_from="resume", out_dir=trained.out_dir, max_iters=21)
    (trained.out_dir.parent / "<b>&").mkdir()
    (trained.out_dir.parent / "<b>&" / "best.safetensors").write_bytes(
        (trained.out_dir / "best.safetensors").read_bytes()
    )
    with client_of(trained) as client:
        assert "<b>" not in client.get("/").text
        runs = client.get("/api/runs")
        assert (runs.headers["content-type"], "<b>&" in runs.json()["models"]) == ("application/json", True)
        assert any(model["id"] == "<b>&" for model in client.get("/v1/models").json()["data"])
        answer = client.post(COMPLETIONS, json={"prompt": "9", "max_tokens": 3})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_failure_of_the_program_is_no_silence(client, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(application.inference, "continue_text", fail)
    for streams in (False, True):
        response = client.post(COMPLETIONS, json={"stream": streams})
        assert response.status_code == 500
        assert "its log says why" in response.json()["error"]["message"]


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(client, monkeypatch):
    original = application.PieceMaker.add

    def fail_later(maker, chunks, **options):
        if maker.num_tokens > 3:
            raise MemoryError
        return original(maker, chunks, **options)

    with monkeypatch.context() as patch:
        patch.setattr(application.PieceMaker, "add", fail_later)
        with client.stream("POST", COMPLETIONS, json={"stream": True, "prompt": "9"}) as response:
            lines = [line for line in response.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"].startswith("out of memory")
    assert client.post(COMPLETIONS, json={"max_tokens": 3}).status_code == 200
