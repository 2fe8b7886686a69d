"""`nanogpt-lite run --dataset FILE` on ten strange texts: it trains sensibly, or says in one line why not."""

import base64
import random
from pathlib import Path

import pytest
from tiny import TINY, to_arguments

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main

RANDOM = random.Random(0)
SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards box with five quick jugs of liquid"
WORDS = SENTENCE.split()
PROSE = "".join(RANDOM.choice(WORDS) + RANDOM.choice([" ", " ", " ", ",\n", ". "]) for _ in range(20_000))
CYRILLIC = PROSE[:50_000].translate({code: code - 97 + 0x430 for code in range(97, 123)})
TEXTS = {
    "one line repeated": "the same line again and again\n" * 2000,
    "300 characters": PROSE[:300],
    "99 % spaces": "".join(character if RANDOM.random() < 0.01 else " " for character in PROSE),
    "a table": "id,name,price\n"
    + "".join(f"{n},item {RANDOM.randrange(99)},{RANDOM.random():.2f}\n" for n in range(4000)),
    "base64": base64.b64encode(RANDOM.randbytes(60_000)).decode(),
    "a dictionary": "\n".join(sorted({"".join(RANDOM.choices("abcdefgh", k=6)) for _ in range(9000)})),
    "two languages": PROSE[:50_000] + CYRILLIC,
    "only newlines": "\n" * 30_000,
    "one long line": PROSE.replace("\n", " "),
}
OPTIONS = {name: TINY[name] for name in ("device", "threads", "n_layer", "n_head", "n_embd")}
OPTIONS |= {"block_size": 32, "batch_size": 16, "max_new_tokens": 20}  # the steps are those of the recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_a_strange_text_is_trained_on_with_a_sensible_verdict_or_refused_in_a_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("strange.txt").write_text(TEXTS[name], encoding="utf-8", newline="")
    options = {**OPTIONS, "max_iters": 400} if len(TEXTS[name]) > 50_000 else OPTIONS
    status = main(["run", "--dataset", "strange.txt", *to_arguments(options)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if status == 2:
        assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
        return
    assert status == 0, err
    run = ng.Run(Path("runs/strange-1"))
    (result,) = (record for record in run.metrics if record["kind"] == "result")
    assert result["val_loss"] < result["unigram"] + 0.05, "no worse than the frequencies of characters"
    verdicts = {"only newlines": "there is nothing more to learn", "base64": "something"}
    assert result["verdict"].startswith(verdicts.get(name, ""))
    if name == "one line repeated":
        assert result["val_loss"] < 0.1, "by a network of one layer"
    assert out.strip("\n ") or name in ("only newlines", "99 % spaces")


@pytest.mark.slow
def test_a_text_of_50_megabytes_is_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("long.txt").write_text(PROSE * (50_000_000 // len(PROSE)), encoding="utf-8", newline="")
    assert main(["run", "--dataset", "long.txt", *to_arguments({**OPTIONS, "max_iters": 50})]) == 0
    assert "recipe for" in capsys.readouterr().err
