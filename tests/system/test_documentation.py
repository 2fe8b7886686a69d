"""What README tells the reader to type: every command is understood, the main ones run, the Python runs."""

import re
import shlex
from pathlib import Path

import pytest

import nanogpt_lite as ng
from nanogpt_lite.cli import main
from nanogpt_lite.data import download, sources
from nanogpt_lite.interop import conversion

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TINY = shlex.split(
    "--block_size 16 --n_layer 1 --n_head 2 --n_embd 16 --ngram 1 --batch_size 4 --max_iters 4 --device cpu"
)
IMPORTED = {"max_iters": 2, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "device": "cpu"}
TORCHRUN = "torchrun --nproc_per_node=2 -m nanogpt_lite"  # tests/device/test_distributed.py has its turn there


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands():
    """All of README's calls of the program, as argument lists."""
    lines = [line.replace(TORCHRUN, "nanogpt-lite") for block in blocks("sh") for line in block.splitlines()]
    parts = [part for line in lines for part in line.split(" && ")]
    return [words[1:] for words in map(shlex.split, parts) if words[0].endswith("nanogpt-lite")]


@pytest.fixture
def shakespeare(tmp_path, monkeypatch):
    """A stand-in for the text, small and in the cache folder, and the current folder empty."""
    text = b"ROMEO:\nWhat light?\n\nJULIET:\nAy me.\n\n" * 40
    resource = download.Resource("http://127.0.0.1:1/input.txt", "shakespeare_char/input.txt")
    monkeypatch.setattr("nanogpt_lite.data.sources.SHAKESPEARE", resource)
    monkeypatch.setenv("NANOGPT_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    (tmp_path / "cache/shakespeare_char").mkdir(parents=True)
    (tmp_path / "cache/shakespeare_char/input.txt").write_bytes(text)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path / "cache/shakespeare_char/input.txt"


def test_every_command_is_understood():
    found = commands()
    assert len(found) >= 10
    for words in found:
        main.parse_command(words)


def test_the_first_two_commands_set_up_and_run():
    first, second = [block.strip() for block in blocks("sh")[:2]]
    assert first.endswith("&& .venv/bin/nanogpt-lite run")
    assert second.endswith("&& .venv/bin/pytest")
    assert commands()[0] == ["run"]


def test_the_first_command_with_the_cache_filled_and_without(shakespeare, capsys):
    assert main.main([*commands()[0], *TINY]) == 0
    captured = capsys.readouterr()
    assert len(captured.out) == 502
    assert "warning" not in captured.err
    assert Path("runs/shakespeare_char-1/loss.png").is_file()
    shakespeare.unlink()
    assert main.main([*commands()[0], *TINY]) == 0
    captured = capsys.readouterr()
    assert len(captured.out) == 502
    assert captured.err.count("warning: cannot fetch http://127.0.0.1:1/input.txt") == 1
    assert Path("runs/python_docs-1/best.safetensors").is_file()
    assert main.main(["run", "--dataset", "shakespeare_char", *TINY]) == 1


def test_the_commands_in_their_order(shakespeare, capsys, monkeypatch):
    """Each on small texts and for a few steps, the options of README's line kept."""
    assert TORCHRUN in README
    monkeypatch.setenv("WANDB_MODE", "offline")
    Path("notes").mkdir()
    for name in ("my.txt", "notes/a.md", "letters.txt"):
        Path(name).write_text("Dear reader, all is well.\n" * 60)
    imported = ng.train("shakespeare_char", preset="cpu", out_dir="other", **IMPORTED)
    conversion.to_nanogpt(imported, "nanoGPT/out-shakespeare-char")
    Path("nanoGPT/out-shakespeare-char/data").rename("nanoGPT/data")
    for words in commands()[1:]:
        if "gpt2" in words:
            continue  # it comes from the hub; tests/test_huggingface.py has its turn
        short = TINY if words[0] in ("run", "train") and "--init_from" not in words else []
        if "--init_from" in words:
            short = ["--max_iters", "6", "--device", "cpu"]
        if words[:2] == ["train", "--preset"]:
            short = ["--max_iters", "2"]
        assert main.main([*words, *short]) == 0, (words, capsys.readouterr().err)


def test_the_python_runs(shakespeare, capsys):
    (code,) = blocks("python")
    assert "max_iters=500" in code
    exec(code.replace("max_iters=500", "max_iters=4, n_embd=16, n_head=2"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("ROMEO:")
    assert "JULIET:" in printed


def test_the_data_is_the_one_that_everybody_uses():
    assert sources.SHAKESPEARE.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert sources.SHAKESPEARE.url.endswith("karpathy/char-rnn/master/data/tinyshakespeare/input.txt")
