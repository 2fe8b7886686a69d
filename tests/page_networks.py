"""Runs of each kind that the page has to show: their texts, options and prompts, and small networks of them."""

from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT
from tiny import TINY

import nanogpt_lite as ng

CHINESE = "".join(f"第{n}瓶酒在牆上，若有一瓶落下，還有{n - 1}瓶。\n" for n in range(400))
HTML = "".join(f"<script>alert({n})</script><img src=x onerror=alert({n})>&amp;<b>{n}</b>\n" for n in range(200))
EXPERT: dict[str, Any] = {
    "ngram": 3,
    "ngram_rows": 64,
    "position": "rotary",
    "norm": "rms",
    "ngram_expert": 4,
    "ngram_expert_weight": 0.4,  # with a fixed weight, the last step of the network is the best
}
GPT2: dict[str, Any] = {"bias": True, "activation": "gelu_tanh", "tied": True}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # name of the run: its text and options
    "default": (TEXT, EXPERT),
    "bpe": (TEXT, {"tokenizer": "bpe-300"}),
    "chinese": (CHINESE, EXPERT),
    "gpt2": (TEXT, {"tokenizer": "byte", **GPT2}),
    "<b>&'\"": (HTML, {}),
}
PROMPTS = {"default": "9 green", "bpe": "9 green", "chinese": "第9瓶", "gpt2": "9 green", "<b>&'\"": "<script>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run of each kind, with early weights and samples on the way, which is the current one."""
    path = tmp_path_factory.mktemp("page")
    kept = {"log_interval": 2, "keep_early": 10, "sample_interval": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for number, (name, (text, options)) in enumerate(NETWORKS.items()):
            Path(f"text{number}.txt").write_text(text, encoding="utf-8", newline="\n")
            ng.train(f"text{number}.txt", **{**TINY, **kept, **options, "out_dir": f"runs/{name}"})
        yield path
