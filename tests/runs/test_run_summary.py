"""The summary of a run, compared with numbers counted in another way."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.cli.main import main
from nanogpt_lite.runs.run_summary import summary

OPTIONS: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name not in ("ngram", "dropout")},
    "n_layer": 2,
}
OPTIONS |= {"max_iters": 6, "eval_interval": 3, "warmup_iters": 1}


@pytest.mark.parametrize("options", [{"preset": "cpu", "bias": True}, {"preset": "modern-cpu"}])
def test_summary_counts_equal_those_of_the_model_and_its_files(text_file, options):
    run = ng.train("bottles.txt", **{**OPTIONS, **options})
    content = summary(run)
    model, tokenizer = ng.load(run)
    assert content["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert content["parameters"] == sum(content["parameters_by_part"].values())
    blocks = dict(model.transformer.h.named_parameters())
    attention = sum(p.numel() for name, p in blocks.items() if ".attn." in name)
    mlp = sum(p.numel() for name, p in blocks.items() if ".mlp." in name)
    assert (content["parameters_by_part"]["attention"], content["parameters_by_part"]["MLP"]) == (attention, mlp)
    modern = options["preset"] == "modern-cpu"
    embeddings = ("token embedding", "n-gram embedding") if modern else ("position embedding",)
    embedding_parameters = sum(content["parameters_by_part"][part] for part in embeddings)
    assert (
        content["flops_per_token"] == 6 * (content["parameters"] - embedding_parameters) + 12 * 2 * 16 * 16
    )  # PaLM, appendix B
    assert content["flops_so_far"] == content["flops_per_token"] * content["tokens_seen"]
    evaluations = [record for record in run.metrics if record["kind"] == "eval"]
    assert content["best_step"] == min(evaluations, key=lambda record: record["val_loss"])["step"]
    assert content["tokens_seen"] == content["step"] * 4 * 16
    saved = checkpoint_file.read_checkpoint(Path(run.out_dir) / "best.safetensors")
    assert content["bytes_of_weights"] == sum(t.nbytes for t in saved.with_prefix("model.").values())
    assert content["bytes_of_training"] == content["bytes_of_weights"] + sum(t.nbytes for t in saved.tensors.values())
    cache = ng.KVCache(model, 1)
    assert content["bytes_of_cache_per_token"] == (cache.keys.nbytes + cache.values.nbytes) / 16
    assert content["best_val_loss"] == run.best_val_loss
    assert content["vocab_size"] == tokenizer.vocab_size
    assert content["dataset_sha256"] == ng.prepare("bottles.txt").sha256
    assert content["versions"]["torch"] == version("torch")


def test_training_memory_is_the_same_for_exported_weights(text_file):
    run = ng.train("bottles.txt", **OPTIONS, preset="modern-cpu")
    ng.export_weights(run)
    assert summary(run, checkpoint="weights")["bytes_of_training"] == summary(run)["bytes_of_training"]


def test_info_command_prints_the_summary_as_json_and_as_text(text_file, capsys):
    run = ng.train("bottles.txt", **OPTIONS, preset="cpu")
    capsys.readouterr()
    assert main(["info", "--out_dir", str(run.out_dir), "--json", "--checkpoint", "last"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(summary(run, checkpoint="last")))
    (run.out_dir / "config.json").write_text("{")
    assert main(["info"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == [
        "run",
        "network",
        "parameters",
        "FLOPs",
        "memory",
        "on a GPU",
        "data",
        "best loss",
        "step",
        "trained with",
        "result",
    ]
    assert f"{run.best_val_loss:.4f}" in shown[7]
    match = re.fullmatch(
        r"on a GPU: +training takes about ([\d.]+)kB with 4 sequences at a time; by part, at most (.*)", shown[5]
    )
    assert match
    peak, parts = match.groups()
    names = ["weights", "gradients", "optimizer", "activations", "logits"]
    assert [part.split()[0] for part in parts.split(", ")] == names
    estimate = summary(run)["bytes_on_gpu"]
    assert float(peak) == pytest.approx(estimate["peak"] / 1000, rel=0.01)
    assert estimate["weights"] == summary(run)["bytes_of_weights"]
    assert shown[1].split(": ")[1].strip() == "block_size 16, n_layer 2, n_head 2, n_embd 16, dropout 0.0"
    main(
        ["train", "--dataset", "bottles.txt", "--preset", "modern-cpu", "--n_layer=1", "--max_iters=1", "--device=cpu"]
    )
    capsys.readouterr()
    main(["info"])
    assert "n_layer 1, " in (network := capsys.readouterr().out.splitlines()[1])
    assert "position rotary, rope_theta 2560.0, qk_norm True, activation relu2, tied False" in network
    assert "zero_init True, ngram 4" in network
    assert "ngram_dropout" in network
    ngrams_off = "--preset modern-cpu --n_layer=1 --ngram=1 --ngram_expert=0 --max_iters=1 --device=cpu"
    main(["train", "--dataset", "bottles.txt", *ngrams_off.split()])
    capsys.readouterr()
    main(["info"])
    assert "ngram" not in capsys.readouterr().out.splitlines()[1]  # without n-grams their other options do nothing
    assert main(["info", "--out_dir", "nowhere"]) == 2
