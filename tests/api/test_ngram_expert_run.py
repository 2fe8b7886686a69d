"""A run with an n-gram expert: what it stores, and that it repeats, resumes, shares and samples as any other run."""

import json
from contextlib import closing
from pathlib import Path

import forked_ranks
import numpy as np
import pytest
import torch
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import sample_copies
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint, write_checkpoint
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.model.ngram_expert import UNFITTED_WEIGHT
from nanogpt_lite.ngrams.ngram_counts import NgramCounts, count_ngrams
from nanogpt_lite.runs import run_summary
from nanogpt_lite.tracking.console import Console

OPTIONS = {**TINY, "dtype": "float32", "ngram_expert": 4, "ngram_expert_weight": 0.5}
COUNTS = [f"model.expert.{name}" for name in NgramCounts._fields]
EXPERT = {*COUNTS, "model.expert.weight"}


def test_training_is_that_of_the_network_alone_and_its_val_loss_that_of_the_mixture(text_file):
    alone, mixed = (ng.train("bottles.txt", **{**OPTIONS, "ngram_expert": order}) for order in (0, 4))
    losses = [[r["loss"] for r in run.metrics if r["kind"] == "step"] for run in (alone, mixed)]
    assert losses[0] == losses[1]
    weights = [read_checkpoint(run.out_dir / "last.safetensors").tensors for run in (alone, mixed)]
    assert set(weights[1]) - set(weights[0]) == EXPERT
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    results = [ng.evaluate(run) for run in (alone, mixed)]
    assert results[0]["network_val_loss"] is None
    last = [[r for r in run.metrics if r["kind"] == "eval"][-1] for run in (alone, mixed)]
    assert last[0]["network_val_loss"] is None
    assert last[1]["network_val_loss"] == pytest.approx(last[0]["val_loss"], abs=1e-6)
    assert results[1]["network_val_loss"] == pytest.approx(results[0]["val_loss"], abs=1e-6)
    assert results[1]["train_loss"] == pytest.approx(results[0]["train_loss"], abs=1e-6)
    assert results[1]["val_loss"] < results[0]["val_loss"] - 0.1
    assert results[1]["val_loss"] == pytest.approx(mixed.best_val_loss, abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_counts_are_those_of_the_train_split_and_exact_on_resume(text_file, weight):
    options = {**OPTIONS, "ngram_expert_weight": weight}
    whole = ng.train("bottles.txt", **options)
    data = ng.prepare("bottles.txt")
    length = 0 if weight else len(data.train) // 50 // 8
    starts = [(2 * part + 1) * len(data.train) // 16 - length // 2 for part in range(8)]
    held_out = [start + i for start in starts for i in range(length)]
    counted = torch.from_numpy(np.delete(data.train, held_out).astype("int64"))
    expected = count_ngrams(counted, data.tokenizer.vocab_size, 4)
    stored = read_checkpoint(whole.out_dir / "last.safetensors").tensors
    assert all(torch.equal(stored[name], counts) for name, counts in zip(COUNTS, expected, strict=True))
    part = ng.train("bottles.txt", **{**options, "max_iters": 10, "lr_decay_iters": 20})
    resumed = ng.train(out_dir=part.out_dir, init_from="resume", max_iters=20)
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]
    first_weight = weight or UNFITTED_WEIGHT
    assert (stored["model.expert.weight"].item() == pytest.approx(first_weight)) == bool(weight), "or it is fitted"
    repeated = ng.train(config=whole.out_dir / "config.json", out_dir="repeated")
    assert (repeated.out_dir / "last.safetensors").read_bytes() == files[0]


def test_a_new_run_from_its_weights_counts_its_own_text(text_file):
    parent = ng.train("bottles.txt", **OPTIONS)
    Path("other.txt").write_text(text_file.read_text()[::-1], encoding="utf-8")
    child = ng.train("other.txt", init_from=str(parent.out_dir), max_iters=1, threads=1, device="cpu")
    stored = [
        read_checkpoint(run.out_dir / "last.safetensors").tensors["model.expert.counts"] for run in (parent, child)
    ]
    assert not torch.equal(*stored)


@pytest.mark.posix("forks ranks")
def test_ranks_have_the_loss_of_one_process_and_its_weight(text_file):
    ng.prepare("bottles.txt")
    options = {"ngram_expert_weight": 0.0}
    assert forked_ranks.run(2, train_once, {"out_dir": "runs/two", **options}, 1) == [0, 0]
    train_once({"out_dir": "runs/one", **options})
    one, two = (read_checkpoint(Path(f"runs/{name}/last.safetensors")) for name in ("one", "two"))
    assert one.metadata.best_val_loss == pytest.approx(two.metadata.best_val_loss, abs=1e-4)
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in COUNTS)
    weights = [saved.tensors["model.expert.weight"].item() for saved in (one, two)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-3)


def train_once(options, *_):
    ng.train("bottles.txt", **{**OPTIONS, "dropout": 0.0, **options})


def test_samples_are_the_same_with_a_cache_and_without_and_in_a_batch(text_file):
    run = ng.train("bottles.txt", **OPTIONS)
    model, tokenizer = ng.load(run)
    prompt = torch.from_numpy(tokenizer.encode("9 green").astype("int64"))[None]
    config = ng.SampleConfig(max_new_tokens=3 * model.config.block_size, seed=3)
    cached, plain = (
        torch.stack(list(generate(model, prompt, config, use_cache=use_cache))) for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)
    batch = torch.stack(list(generate(model, prompt.expand(3, -1), config)))
    assert torch.equal(batch[:, :1], cached)


def test_damaged_counts_in_a_checkpoint_are_an_error(text_file):
    run = ng.train("bottles.txt", **OPTIONS)
    path = run.out_dir / "best.safetensors"
    saved = read_checkpoint(path)
    name = "model.expert.tokens"
    for damaged in (saved.tensors[name] + 99, saved.tensors[name].float(), saved.tensors[name][:-1]):
        write_checkpoint(path, {**saved.tensors, name: damaged}, saved.metadata)
        with pytest.raises(ng.UserError, match="do not fit the network that its config describes"):
            ng.load(run)
    name = "model.expert.weight"
    for weight in (0.0, 1.0, -0.1, float("nan"), [0.5]):
        write_checkpoint(path, {**saved.tensors, name: torch.tensor(weight)}, saved.metadata)
        with pytest.raises(ng.UserError, match="do not fit the network"):
            ng.load(run)
    for name in EXPERT:
        write_checkpoint(path, {n: t for n, t in saved.tensors.items() if n != name}, saved.metadata)
        with pytest.raises(ng.UserError, match="do not fit the network"):
            ng.load(run)


def test_copies_of_samples_are_measured_with_the_expert_and_without(text_file, capsys):
    from nanogpt_lite.cli.main import main

    run = ng.train("bottles.txt", **OPTIONS)
    copies = ng.evaluate(run, copies=True)["copies"]
    assert copies is not None
    assert list(copies) == ["samples", "network_samples", "val"]
    assert [copied["texts"] for copied in copies.values()] == [10, 10, len(ng.prepare("bottles.txt").val) // 500]
    train = text_file.read_text(encoding="utf-8")
    for copied in copies.values():
        assert copied["longest"] in train
        assert len(copied["longest"]) == copied["longest_characters"] >= copied["mean_characters"] > 0
    assert copies["samples"]["mean_characters"] > copies["network_samples"]["mean_characters"]
    assert copies["val"]["longest_characters"] > 20, "the song repeats itself"
    assert ng.evaluate(run)["copies"] is None
    other = ng.evaluate(run, copies=True, seed=5)["copies"]
    assert other is not None
    assert other["samples"] != copies["samples"]
    assert other["val"] == copies["val"]
    capsys.readouterr()
    assert main(["eval", "--copies"]) == 0
    longest = copies["samples"]["longest"]
    out, err = capsys.readouterr()
    assert f"at most: {longest!r}" in out
    assert "samples are generated" in err, "it takes a while"
    for texts in (
        "10 samples:",
        "10 samples of the network alone:",
        f"{copies['val']['texts']} parts of the val split:",
    ):
        assert f"longest span that the train split has too, of each of {texts}" in out
    with pytest.raises(ng.UserError, match="`copies` is about the text that the run was trained on"):
        ng.evaluate(run, copies=True, dataset="bottles.txt")


def test_no_part_of_a_val_split_that_is_too_short_is_measured(text_file, monkeypatch):
    monkeypatch.setattr(sample_copies, "TEXTS", 1)
    monkeypatch.setattr(sample_copies, "TEXT_TOKENS", 3000)
    copies = ng.evaluate(ng.train("bottles.txt", **OPTIONS), copies=True)["copies"]
    assert copies is not None
    assert list(copies) == ["samples", "network_samples"]


@pytest.mark.parametrize(
    ("length", "number"), [(0, 0), (499, 0), (500, 1), (1200, 2), (4999, 9), (5000, 10), (99_999, 10)]
)
def test_parts_of_a_val_split_do_not_overlap_and_are_spread_over_it(length, number):
    parts = sample_copies._read_parts(np.arange(length))
    assert [len(part) for part in parts] == [500] * number
    assert len({token for part in parts for token in part.tolist()}) == 500 * number
    if parts:
        assert parts[0][0] == 0
        assert length - parts[-1][-1] <= length / number, "the last part is in the last share of the split"


def test_a_run_with_the_weights_of_another_one_has_a_weight_of_its_own(text_file):
    fitted = {**OPTIONS, "ngram_expert_weight": 0.0}
    first = ng.train("bottles.txt", **fitted)
    (text_file.parent / "short.txt").write_text(text_file.read_text(encoding="utf-8")[:3000], encoding="utf-8")
    second = ng.train("short.txt", **fitted, init_from=str(first.out_dir))
    experts = [ng.load(run)[0].expert for run in (first, second)]
    weights = [expert.weight.item() for expert in experts if expert is not None]
    assert weights[0] > UNFITTED_WEIGHT + 0.1
    assert weights[1] == pytest.approx(UNFITTED_WEIGHT), "the text is too short to hold out some of it"


def test_each_evaluation_shows_the_loss_of_the_network_alone(text_file, capsys):
    with closing(Console(bar=False)) as console:
        run = ng.train("bottles.txt", **OPTIONS, console=console)
    shown = capsys.readouterr().err
    evaluations = [record for record in run.metrics if record["kind"] == "eval"]
    assert len(evaluations) == 2
    for record in evaluations:
        assert f"val loss {record['val_loss']:.4f}" in shown
        assert f", of the network alone {record['network_val_loss']:.4f}" in shown


def test_a_network_that_learns_nothing_is_found_although_the_counts_are_good(text_file):
    run = ng.train("bottles.txt", **{**OPTIONS, "learning_rate": 1e-9, "min_lr": 0, "ngram_expert_weight": 0.0})
    (result,) = (record for record in run.metrics if record["kind"] == "result")
    assert result["val_loss"] < result["bigram"]
    assert result["verdict"].startswith("something is wrong: the network is no better")


def test_info_shows_the_size_of_the_table(text_file):
    run = ng.train("bottles.txt", **OPTIONS)
    stored = read_checkpoint(run.out_dir / "best.safetensors").tensors
    content = ng.summary(run)
    assert content["ngrams"] == len(stored["model.expert.tokens"])
    assert content["bytes_of_ngrams"] == sum(stored[name].nbytes for name in COUNTS)
    assert content["weight_of_ngrams"] == 0.5
    text = run_summary.format_text(content)
    assert f"n-grams:      {content['ngrams']:,} of up to 4 tokens, " in text
    assert "; their weight in the mixture is 0.50\n" in text
    plain = ng.summary(ng.train("bottles.txt", **{**OPTIONS, "ngram_expert": 0, "max_iters": 1}))
    assert (plain["ngrams"], plain["bytes_of_ngrams"], plain["weight_of_ngrams"]) == (0, 0, None)
    assert "n-grams" not in run_summary.format_text(plain)


def test_eval_prints_the_loss_with_the_expert_and_without(text_file, capsys):
    from nanogpt_lite.cli.main import main

    ng.train("bottles.txt", **OPTIONS)
    capsys.readouterr()
    assert main(["eval", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["val_loss"] < result["network_val_loss"]
    assert main(["eval"]) == 0
    assert f"network_val_loss: {result['network_val_loss']:.4f}\n" in capsys.readouterr().out
