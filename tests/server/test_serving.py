"""The server as a process: real clients, clients that go away, many at once, signals, and ports."""

import concurrent.futures
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import wait_for
from documentation import ROOT, code_blocks, shell_commands
from served_app import ask, health, run_dir, server, server_process
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.server import serving

__all__ = ["run_dir", "server"]  # fixtures

pytest.importorskip("uvicorn", reason="needs uvicorn (the extra serve)")

LONG = {"prompt": "9 green", "max_tokens": 16_384, "n": 4, "stream": True}


def expected_text(run_dir, prompt="9 green", **options):
    (text,) = ng.sample(run_dir, device="cpu", threads=1, start=prompt, **options)
    return text.removeprefix(prompt)


def test_the_first_answer_comes_soon_after_the_start(run_dir):
    with server_process(run_dir) as (address, _):
        assert health(address) == {"status": "ok", "is_generating": False, "waiting": 0, "tokens": 0}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_the_text_of_the_command_line(server, run_dir):
    body = json.dumps({"prompt": "9 green", "max_tokens": 60, "seed": 3})
    command = ["curl", "-sS", "--noproxy", "*", f"{server}/v1/completions", "-d"]
    whole = subprocess.run([*command, body], capture_output=True, check=True, timeout=60).stdout
    expected = expected_text(run_dir, max_new_tokens=60, seed=3)
    assert json.loads(whole)["choices"][0]["text"] == expected
    streamed = subprocess.run(
        [*command, body[:-1] + ', "stream": true}'], capture_output=True, check=True, timeout=60
    ).stdout.decode()
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line and "[DONE]" not in line]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == expected


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_and_the_python_of_its_page_run(text_file, capsys, monkeypatch):
    Path("notes.txt").write_text("To be, or not to be, that is the question.\n" * 40, encoding="utf-8")
    ng.train("notes.txt", **TINY, out_dir="runs/notes")
    page = ROOT / "docs/serve.md"
    (curl,) = (words for words in shell_commands(page) if words[0] == "curl")
    asks, serves, makes = code_blocks(page, "python")
    with server_process(Path("runs/notes")) as (address, _):
        words = [word.replace("http://127.0.0.1:8000", address) for word in curl]
        out = subprocess.run([*words, "-sS", "--noproxy", "*"], capture_output=True, check=True, timeout=60).stdout
        assert out.endswith(b"data: [DONE]\n\n")
        if importlib.util.find_spec("openai"):
            monkeypatch.setenv("NO_PROXY", "*")
            exec(asks.replace("http://127.0.0.1:8000", address), {})
            assert capsys.readouterr().out == f"{expected_text(Path('runs/notes'), prompt='To be', seed=7)}\n"
    ran = []
    monkeypatch.setattr("nanogpt_lite.server.serving._run", lambda *arguments, **options: ran.append(arguments))
    names = {"ng": ng}
    exec(serves.replace("8001", "0"), names)
    exec(makes, names)
    assert len(ran) == 1
    assert names["application"].allowed_hosts == {"notes.example.org"}


OPENAI = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
options = dict(model=client.models.list().data[0].id, prompt="9 green", max_tokens=60)
for extra in ({"temperature": 0}, {"seed": 3}):
    whole = client.completions.create(**options, **extra).choices[0].text
    streamed = "".join(event.choices[0].text for event in client.completions.create(**options, **extra, stream=True))
    assert whole == streamed, (whole, streamed)
    print(whole, end="\\0")
try:
    client.completions.create(**options, temperature=-1)
except openai.BadRequestError as error:
    print(error.body["message"], end="\\0")
"""


def test_the_openai_package_gets_the_text_of_the_command_line(server, run_dir):
    pytest.importorskip("openai", reason="needs the package openai")
    command = [sys.executable, "-c", OPENAI, server]
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    out = subprocess.run(command, capture_output=True, check=True, timeout=120, env=environment).stdout.decode()
    greedy, seeded, message, _ = out.split("\0")
    assert greedy == expected_text(run_dir, max_new_tokens=60, temperature=0.0)
    assert seeded == expected_text(run_dir, max_new_tokens=60, seed=3)
    assert "`temperature=-1` is an invalid value" in message


def test_llm_gets_the_text_of_the_command_line(server, run_dir, tmp_path):
    pytest.importorskip("llm", reason="needs the package llm")
    model = {"model_id": "mine", "model_name": "bottles-1", "api_base": f"{server}/v1", "completion": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "NO_PROXY": "*", "no_proxy": "*"}
    command = [sys.executable, "-m", "llm", "prompt", "-m", "mine", "--key", "none", "--no-log", "9 green"]
    command += ["-o", "max_tokens", "60", "-o", "temperature", "0"]
    expected = expected_text(run_dir, max_new_tokens=60, temperature=0.0)
    for streams in ([], ["--no-stream"]):
        out = subprocess.run([*command, *streams], capture_output=True, check=True, timeout=120, env=environment)
        assert out.stdout.decode() == f"{expected}\n"


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_stops_its_generation(server, streams):
    """Four requests for 65,536 tokens each are begun; of all of them, few tokens are generated."""
    before = health(server)["tokens"]
    for _ in range(4):
        already = health(server)["tokens"]
        connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/completions", json.dumps({**LONG, "stream": streams}))
        wait_for(lambda already=already: health(server)["tokens"] > already)
        connection.close()
        wait_for(lambda: not health(server)["is_generating"])
    assert ask(server, {"prompt": "9 green", "max_tokens": 3})[0] == 200
    assert health(server)["tokens"] - before < 65_536


def test_a_stream_cut_at_any_byte_harms_nobody(server):
    body = json.dumps({"prompt": "9 green", "max_tokens": 20, "stream": True, "seed": 3}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    host, port = server.removeprefix("http://").split(":")
    request = head + body
    for cut in range(1, len(request)):  # in the request
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(request[:cut])
    for length in range(1, 1500, 31):  # in the answer
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(request)
            received = 0
            while received < length and (part := connection.recv(length - received)):
                received += len(part)
    assert ask(server, {"prompt": "9 green", "max_tokens": 3})[0] == 200


def test_several_clients_at_once_all_get_their_text(server, run_dir):
    expected = [expected_text(run_dir, max_new_tokens=80, seed=seed) for seed in range(8)]
    requests = [{"prompt": "9 green", "max_tokens": 80, "seed": seed} for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda fields: ask(server, fields), requests))
    assert [answer["choices"][0]["text"] for _, answer in answers] == expected


def test_clients_beyond_the_queue_are_told_when_to_come_back(run_dir):
    with server_process(run_dir, "--max_waiting", "2") as (address, _):
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            fields = {"prompt": "9 green", "max_tokens": 300}
            answers = list(pool.map(lambda _: ask(address, fields), range(12)))
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 3
        refused = next(answer for status, answer in answers if status == 429)
        assert refused["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.posix("signals of POSIX")
def test_a_signal_in_the_middle_of_a_text_ends_the_server(run_dir, signal_number):
    with server_process(run_dir) as (address, process):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(LONG))
        response = connection.getresponse()
        response.read(200)
        process.send_signal(signal_number)
        assert b"[DONE]" not in response.read(), "a text that was cut does not look like a whole one"
        assert process.wait(60) in (-signal_number, 128 + signal_number)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        connection.close()


@pytest.mark.posix("signals of POSIX")
def test_a_signal_ends_the_server_also_while_clients_neither_send_nor_read(run_dir):
    with server_process(run_dir) as (address, process):
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps(LONG).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection((host, int(port))) as sender, socket.socket() as reader:
            sender.sendall(head + body[:5])
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            reader.connect((host, int(port)))
            reader.sendall(head + body)
            wait_for(lambda: health(address)["tokens"] > 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_client_that_sends_slowly_does_not_stop_the_others(server):
    host, port = server.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert ask(server, {"prompt": "9 green", "max_tokens": 3})[0] == 200
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.parametrize(
    "request_bytes",
    [b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
     b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
     b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
     b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"],
    ids=lambda request_bytes: repr(request_bytes[:30]),
)  # fmt: skip
def test_what_is_no_http_is_refused_and_harms_nobody(server, request_bytes):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        answer = b""
        with suppress(ConnectionError, BrokenPipeError):  # the server may have closed it already
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
    assert not answer.startswith(b"HTTP/1.1 2")
    assert ask(server, None, "/health", "GET")[0] == 200


def test_a_port_that_is_taken_is_an_error_of_the_user(run_dir, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--out_dir", str(run_dir), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened on" in capsys.readouterr().err


def test_a_server_needs_a_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--out_dir", "nothing"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.linux("reads /proc")
def test_a_load_of_many_clients_is_answered_or_refused_and_memory_stays_flat(run_dir):
    """100 clients, 1,000 requests, of which 200 are cut."""

    def one(number):
        """The statuses until an answer: a refused client asks again. None of a client that goes away."""
        if number % 5:
            statuses = []
            while not statuses or statuses[-1] == 429:
                status, answer = ask(address, {"prompt": "9 green", "max_tokens": 20, "seed": number})
                assert ("choices" if status == 200 else "error") in answer
                statuses.append(status)
                time.sleep(0.02 if status == 429 else 0)  # as a client waits that was refused
            return statuses
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(LONG))
        connection.getresponse().read(1 + number % 300)
        connection.close()
        return []

    def memory():
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0])

    with server_process(run_dir, "--max_waiting", "50") as (address, process):
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            list(pool.map(one, range(200)))
            before = memory()
            answers = list(pool.map(one, range(1000)))
        assert [statuses[-1:] for statuses in answers].count([200]) == 800
        assert {status for statuses in answers for status in statuses} == {200, 429}
        wait_for(lambda: ask(address, {"prompt": "9", "max_tokens": 2})[0] == 200)
        assert memory() < before + 50_000  # kB


def test_page_is_opened_in_a_browser_when_asked_for(trained, monkeypatch):
    opened, served = threading.Event(), []
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: (addresses.append(address), opened.set()))
    monkeypatch.setattr(serving, "_run", lambda *_, **__: served.append(opened.wait(60)))
    assert main(["serve", "--open", "--port", "0", "--out_dir", str(trained.out_dir)]) == 0
    assert served == [True]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", addresses[0])
    assert main(["serve", "--port", "0", "--out_dir", str(trained.out_dir)]) == 0
    assert len(addresses) == 1
