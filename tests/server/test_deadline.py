"""The time limit of an answer, with a clock that the tests move."""

import itertools

import pytest
from served_app import client_of
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.generation import cpu_linear

deadline = pytest.importorskip("nanogpt_lite.server.deadline", reason="needs starlette (the extra serve)")
pytest.importorskip("httpx", reason="needs httpx (the extra serve)")

FIELDS = {"prompt": "9 green", "seed": 3, "max_tokens": 60}


class Clock:
    """Each look at it moves it by one second."""

    def __init__(self):
        self.ticks = itertools.count()

    def monotonic(self):
        return next(self.ticks)


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory):
    """A run of a text in bytes, whose characters have several."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "text.txt").write_text("éàü十🍾 bottles hanging " * 200, encoding="utf-8")
    data = ng.prepare(folder / "text.txt", tokenizer="byte", out_dir=folder / "data")
    return ng.train(data, out_dir=folder / "run", **TINY)


@pytest.fixture
def client(shared_run, monkeypatch):
    monkeypatch.setattr(deadline, "time", Clock())
    with client_of(shared_run, answer_seconds=20) as client:
        yield client


def test_texts_end_when_the_time_is_over(client, shared_run):
    (whole,) = ng.sample(shared_run, device="cpu", threads=1, start="9 green", seed=3, max_new_tokens=60)
    answer = client.post("/v1/completions", json=FIELDS).json()
    (choice,) = answer["choices"]
    assert 10 < answer["usage"]["completion_tokens"] < 20
    assert whole.startswith(FIELDS["prompt"] + choice["text"])
    assert len(choice["text"]) == answer["usage"]["completion_tokens"], "one character each"
    assert choice["finish_reason"] == "length"
    several = client.post("/v1/completions", json={**FIELDS, "n": 3}).json()["choices"]
    assert [choice["finish_reason"] for choice in several] == ["length"] * 3


def test_stream_ends_as_one_that_has_all_tokens(client):
    streamed = client.post("/v1/completions", json={**FIELDS, "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n")
    assert '"finish_reason": "length"' in streamed


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"stop": "bottles hanging"}])
def test_what_was_held_back_is_a_part_of_the_text(bytes_run, monkeypatch, more):
    """Every character has several bytes, and is perhaps the beginning of the stop text."""
    fields = {"prompt": "é", "seed": 3, "n": 3, "temperature": 2.0, **more}
    monkeypatch.setattr(deadline, "time", Clock())
    with client_of(bytes_run, answer_seconds=45) as client:
        ended = client.post("/v1/completions", json={**fields, "max_tokens": 60}).json()
    tokens = ended["usage"]["completion_tokens"] // 3
    with client_of(bytes_run) as client:
        expected = client.post("/v1/completions", json={**fields, "max_tokens": tokens}).json()
    assert cpu_linear.MIN_TOKENS <= tokens < 45, "else the layers and so the last bits of logprobs would differ"
    assert ended["choices"] == expected["choices"]


@pytest.mark.parametrize(("path", "fields"), [("/v1/completions", FIELDS), ("/api/inspect", {"text": "9 green"})])
def test_request_whose_time_is_over_before_it_begins_is_refused(shared_run, path, fields):
    with client_of(shared_run, answer_seconds=1e-9) as client:
        response = client.post(path, json=fields)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    error = response.json()["error"]
    assert error["type"] == "server_error"
    assert error["message"] == "no answer was possible within 1e-09 s; ask for less, or again when fewer ask"


def test_without_a_limit_no_time_is_over(shared_run):
    with client_of(shared_run) as client:
        answer = client.post("/v1/completions", json=FIELDS).json()
    assert answer["usage"]["completion_tokens"] == 60
