"""/v1/completions and /v1/chat/completions: the text of the command line, whole and streamed, and what else is said."""

import json
import math
from typing import Any

import pytest
import torch
from served_app import client_of
from tiny import TINY

import nanogpt_lite as ng

pytest.importorskip("starlette", reason="needs starlette (the extra serve)")
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")

GREEDY = {"temperature": 0}
REQUESTS: list[dict[str, Any]] = [
    {},
    {"prompt": "9 green"},
    {"prompt": "9 green", **GREEDY},
    {"prompt": "9 green", "seed": 5},
    {"prompt": "9 green bottles hanging on the wall, and", "seed": 6, "max_tokens": 60},  # longer than the context
    {"prompt": "9 green", "seed": 5, "n": 3, "max_tokens": 40},
    {"prompt": "wall", "temperature": 1.2, "top_k": 5, "top_p": 0.7, "min_p": 0.02, "max_tokens": 40},
    {"prompt": "wall", "stop": "\n", "seed": 2, "n": 2},
]


@pytest.fixture
def client(trained):
    with client_of(trained) as client:
        yield client


def command_line_texts(run, request):
    """What `sample` writes after the prompt."""
    names = {"n": "num_samples", "max_tokens": "max_new_tokens", "prompt": "start"}
    options = {names.get(name, name): value for name, value in request.items()}
    prompt = request.get("prompt", "\n")
    return [text.removeprefix(prompt) for text in ng.sample(run, device="cpu", threads=1, **options)]


def whole(client, **request):
    response = client.post("/v1/completions", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def events(client, path="/v1/completions", **request):
    """The events of a stream, without the last one, which ends it."""
    with client.stream("POST", path, json={**request, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def streamed_texts(received, number):
    texts = [""] * number
    for event in received:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


@pytest.mark.parametrize("request_fields", REQUESTS, ids=str)
def test_the_text_is_that_of_the_command_line_whole_and_streamed(trained, client, request_fields):
    expected = command_line_texts(trained, request_fields)
    answer = whole(client, **request_fields)
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
    received = events(client, **request_fields)
    assert streamed_texts(received, len(expected)) == expected
    assert len(received) > 3, "it comes in parts"


def test_a_text_ends_because_it_is_long_enough_or_before_a_stop_text(trained, client):
    answer = whole(client, prompt="9 green", max_tokens=7, **GREEDY)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["text"]) == 7
    text = command_line_texts(trained, {"prompt": "9 green", **GREEDY})[0]
    stops = [text[20:23], text[10:12], "never"]
    first = min(text.index(stop) for stop in stops[:2])
    answer = whole(client, prompt="9 green", stop=stops, **GREEDY)
    assert answer["choices"][0]["text"] == text[:first]
    assert answer["choices"][0]["finish_reason"] == "stop"
    (*_, last) = events(client, prompt="9 green", stop=stops, **GREEDY)
    assert last["choices"][0]["finish_reason"] == "stop"


def test_tokens_are_counted(client):
    answer = whole(client, prompt="9 green", max_tokens=7, n=2)
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 14, "total_tokens": 21}
    *received, last = events(client, prompt="9 green", max_tokens=7, n=2, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], answer["usage"])
    assert all("usage" not in event for event in received)


def test_the_prompt_is_echoed_if_asked_for(trained, client):
    request = {"prompt": "9 green", "n": 2, "max_tokens": 9, "echo": True}
    expected = ng.sample(trained, start="9 green", num_samples=2, max_new_tokens=9)
    assert [choice["text"] for choice in whole(client, **request)["choices"]] == expected
    assert streamed_texts(events(client, **request), 2) == expected


@pytest.mark.parametrize("echo", [False, True])
def test_log_probabilities_are_those_of_the_network_for_each_token(trained, client, echo):
    request = {"prompt": "9 green", "max_tokens": 30, "seed": 3, "logprobs": 2, "echo": echo}
    answer = whole(client, **request)
    (choice,) = answer["choices"]
    plain = {name: value for name, value in request.items() if name != "logprobs"}
    assert choice["text"] == whole(client, **plain)["choices"][0]["text"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(len(choice["text"])))
    text = choice["text"] if echo else f"9 green{choice['text']}"
    reading = ng.inspect(trained, text, top=2)
    surprise = reading.surprise[-len(logprobs["tokens"]) :].tolist()
    for given, expected in zip(logprobs["token_logprobs"], surprise, strict=True):
        assert (given is None) == math.isnan(expected)
        assert given is None or given == pytest.approx(-expected, abs=2e-4)
    alternatives = reading.expected_instead(2)[-len(logprobs["tokens"]) :]
    for given, expected in zip(logprobs["top_logprobs"], alternatives, strict=True):
        assert list(given or {}) == [token for token, _ in expected]
    joined = {name: [] for name in logprobs}
    for event in events(client, **request):
        for name, values in (event["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined["tokens"] == logprobs["tokens"]
    assert joined["text_offset"] == logprobs["text_offset"]
    assert joined["token_logprobs"] == pytest.approx(logprobs["token_logprobs"])


def test_log_probabilities_end_where_the_text_ends(trained, client):
    text = command_line_texts(trained, {"prompt": "9 green", **GREEDY})[0]
    answer = whole(client, prompt="9 green", stop=text[10:14], logprobs=0, **GREEDY)
    (choice,) = answer["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert choice["logprobs"]["top_logprobs"] == [{}] * len(choice["text"])


def test_characters_of_several_bytes_are_whole_in_each_event(text_file):
    text_file.write_text("Ein Bär aß süße Äpfel; €uro für alle. " * 200, encoding="utf-8")
    run = ng.train("bottles.txt", **TINY, tokenizer="byte")
    with client_of(run) as client:
        request = {"prompt": "ß", "max_tokens": 200, "seed": 4, "temperature": 1.5}
        expected = command_line_texts(run, request)
        received = events(client, **request)
        assert streamed_texts(received, 1) == expected == [whole(client, **request)["choices"][0]["text"]]
        assert any(ord(character) > 127 for character in expected[0])
        choice = whole(client, **request, logprobs=1, echo=True)["choices"][0]
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == f"ß{expected[0]}"
        assert choice["logprobs"]["tokens"][:2] == ["", "ß"]


def test_a_chat_needs_a_template_of_the_user(trained, client):
    messages = [{"role": "user", "content": "9 green"}]
    refused = client.post("/v1/chat/completions", json={"messages": messages})
    assert refused.status_code == 400
    assert "no chat template" in refused.json()["error"]["message"]
    with client_of(trained, chat_template="{content} bottles\n") as client:
        request = {"messages": messages, "max_tokens": 20, **GREEDY}
        answer = client.post("/v1/chat/completions", json=request).json()
        expected = whole(client, prompt="9 green bottles\n", max_tokens=20, stop=" bottles\n", **GREEDY)
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected["choices"][0]["text"]}
        received = events(client, "/v1/chat/completions", **request)
        assert "".join(event["choices"][0]["delta"]["content"] for event in received) == expected["choices"][0]["text"]
        assert {event["object"] for event in received} == {"chat.completion.chunk"}
        assert ["role" in event["choices"][0]["delta"] for event in received] == [True] + [False] * (len(received) - 1)


def test_models_are_the_named_run_first_then_the_others_and_their_checkpoints(trained, client):
    other = ng.train("bottles.txt", **{**TINY, "max_iters": 4, "keep_every": 2}, out_dir="runs/a")
    (trained.out_dir.parent / "notes.csv").write_text("no run")
    (trained.out_dir.parent / "empty").mkdir()
    models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert models == ["bottles-1", "bottles-1/last", "a", "a/last", "a/step_000002", "a/step_000004"]
    assert client.get("/v1/models/a/last").json()["id"] == "a/last"
    request = {"prompt": "9 green", "max_tokens": 30}
    answer = whole(client, model="a/step_000002", **request)
    assert answer["model"] == "a/step_000002"
    step_2 = ng.sample(other, checkpoint="step_000002", start="9 green", max_new_tokens=30)
    assert answer["choices"][0]["text"] == step_2[0].removeprefix("9 green")
    assert whole(client, **request)["model"] == "bottles-1"


def test_a_network_that_was_loaded_before_can_be_served(trained):
    with client_of(ng.load(trained)) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [
            "network",
            "bottles-1",
            "bottles-1/last",
        ]
        expected = command_line_texts(trained, REQUESTS[3])
        assert whole(client, **REQUESTS[3])["choices"][0]["text"] == expected[0]


def test_a_run_that_gets_a_best_checkpoint_later_is_then_asked_for_it(trained):
    best, content = trained.out_dir / "best.safetensors", (trained.out_dir / "best.safetensors").read_bytes()
    best.unlink()
    with client_of(trained) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["bottles-1"]
        best.write_bytes(content)
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["bottles-1", "bottles-1/last"]
        assert whole(client, **REQUESTS[1])["choices"][0]["text"] == command_line_texts(trained, REQUESTS[1])[0]


def test_of_two_runs_of_one_name_the_named_one_is_meant(trained, tmp_path):
    elsewhere = ng.train("bottles.txt", **{**TINY, "max_iters": 4}, out_dir=tmp_path / "elsewhere" / "bottles-1")
    with client_of(elsewhere) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["bottles-1", "bottles-1/last"]
        assert whole(client, **REQUESTS[1])["choices"][0]["text"] == command_line_texts(elsewhere, REQUESTS[1])[0]


def test_a_checkpoint_that_changed_is_read_again(trained, client):
    request = {"prompt": "9 green", "max_tokens": 30, **GREEDY}
    before = whole(client, **request)["choices"][0]["text"]
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=60)
    after = whole(client, **request)["choices"][0]["text"]
    assert after == command_line_texts(trained, request)[0]
    assert after != before


def test_a_text_is_read_as_by_inspect(trained, client):
    request = {"text": "9 green bottles", "top": 3, "temperature": 0.5, "attention": True, "lens": True}
    content = client.post("/api/inspect", json=request).json()
    reading = ng.inspect(trained, "9 green bottles", top=3, temperature=0.5, device="cpu", threads=1)
    expected = reading.to_dict()
    assert content["model"] == "bottles-1"
    assert {name: content[name] for name in expected} == expected
    torch.testing.assert_close(torch.tensor(content["attention"]), reading.attention, atol=1e-6, rtol=0)
    assert content["lens"]["ids"] == reading.lens.ids.tolist()
    assert content["lens"]["tokens"][-1][-1] == reading.next_tokens[-1]


def test_runs_say_how_far_they_are(trained, client):
    (run,) = client.get("/api/runs").json()["runs"]
    assert (run["name"], run["step"], run["is_finished"]) == ("bottles-1", 20, True)
    assert run["models"] == ["bottles-1", "bottles-1/last"]
    assert run["best_val_loss"] == trained.best_val_loss
    assert [step for step, *_ in run["evaluations"]] == [10, 20]
    assert run["verdict"] == trained.metrics[-2]["verdict"]


def test_the_page_is_at_the_root(client):
    page = client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'src="/page/main.js"' in page.text
