"""The result of a training: by an independent evaluation, also of a long val split; and when there is none."""

import json
import math
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY, TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.api.result import compare
from nanogpt_lite.cli.main import main
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.device import devices
from nanogpt_lite.diagnosis.ngram_baseline import kneser_ney_losses
from nanogpt_lite.runs import run_summary
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import ResultRecord
from nanogpt_lite.trainer.evaluation import Losses

OPTIONS = {**TINY, "dtype": "float32"}
# words in a random order, of which more than the words can only be learned by heart
WORDS = " ".join(np.random.default_rng(0).choice(["north", "east", "south", "west", "up", "down", "stop"], 150))
OVERFITTING = {**OPTIONS, "dropout": 0.0, "eval_interval": 5, "n_embd": 32, "learning_rate": 0.02}


def result_of(run):
    (result,) = (record for record in run.metrics if record["kind"] == "result")
    return result


def test_the_result_is_that_of_an_evaluation_of_the_best_checkpoint(text_file):
    run = ng.train("bottles.txt", **OPTIONS)
    result, evaluated, data = result_of(run), ng.evaluate(run), ng.prepare("bottles.txt")
    assert result["val_loss"] == pytest.approx(evaluated["val_loss"], rel=1e-6)
    assert (result["step"], result["best_step"]) == (20, 20)
    assert (result["val_tokens"], result["split_tokens"]) == (len(data.val), len(data.val))
    losses = kneser_ney_losses(data.train, data.val, vocab_size=data.tokenizer.vocab_size, orders=(1, 2, 5))
    assert [result["unigram"], result["bigram"], result["five_gram"]] == pytest.approx(list(losses.values()))
    of_evaluate = [evaluated["unigram_loss"], evaluated["bigram_loss"], evaluated["five_gram_loss"]]
    assert of_evaluate == pytest.approx(list(losses.values()))
    assert result["perplexity"] == pytest.approx(math.exp(result["val_loss"]))
    assert result["bits_per_character"] == pytest.approx(result["val_loss"] / math.log(2))
    assert "still falling" in result["verdict"]
    assert [record["kind"] for record in run.metrics][-2:] == ["result", "done"]


def test_bits_per_character_and_byte_count_the_text_of_the_val_split(text_file):
    text = "Grüße aus Köln: ähnlich, aber nicht ganz gleich; " * 200
    text_file.write_text(text, encoding="utf-8")
    val = text[int(len(text) * 0.9) :]
    run = ng.train("bottles.txt", **OPTIONS, tokenizer="byte")
    result = result_of(run)
    nats = result["val_loss"] * len(val.encode())
    assert result["nats_per_character"] == pytest.approx(nats / len(val))
    assert result["bits_per_byte"] == pytest.approx(result["val_loss"] / math.log(2))
    (*_, evaluation) = (record for record in run.metrics if record["kind"] == "eval")
    assert evaluation["val_loss_per_char"] == pytest.approx(evaluation["val_loss"] * len(val.encode()) / len(val))


@pytest.mark.parametrize("options", [{"eval_tokens": 32}, {"eval_iters": 2}])
def test_the_result_covers_a_long_val_split_that_training_evaluated_in_part(text_file, options, capsys):
    text_file.write_text(WORDS)
    with closing(Console(bar=False)) as console:
        run = ng.train("bottles.txt", **{**OVERFITTING, **options, "max_iters": 1200}, console=console)
    assert f"evaluating the best checkpoint on {result_of(run)['val_tokens']} val tokens" in capsys.readouterr().err
    result, evaluated = result_of(run), ng.evaluate(run)
    assert result["best_step"] < run.metrics[-1]["step"]  # else the weights would be those of the last step
    assert result["val_loss"] == pytest.approx(evaluated["val_loss"], rel=1e-6)
    assert result["val_loss"] != run.best_val_loss
    assert result["val_tokens"] == evaluated["val_tokens"] > 64


def test_the_result_evaluates_no_more_than_training_read(text_file):
    text_file.write_text(text_file.read_text() * 20)  # 48,580 val tokens; training reads 20 * 4 * 16
    run = ng.train("bottles.txt", **OPTIONS, eval_tokens=64)
    assert (result_of(run)["val_tokens"], result_of(run)["split_tokens"]) == (1280, 48_580)
    assert result_of(run)["val_loss"] != run.best_val_loss


def test_after_a_limit_of_time_nothing_is_evaluated_again(text_file):
    run = ng.train("bottles.txt", **OPTIONS, eval_tokens=64, max_seconds=1e-9)
    assert run.metrics[-1]["reason"] == "max_seconds"
    assert not [record for record in run.metrics if record["kind"] == "result"]  # no step was taken
    ng.train("bottles.txt", **{**OPTIONS, "max_iters": 2}, out_dir="slow", eval_tokens=64)
    run = ng.train(out_dir="slow", init_from="resume", max_iters=10**6, max_seconds=0.05)
    assert run.metrics[-1]["reason"] == "max_seconds"
    *_, result, _ = run.metrics
    assert (result["val_loss"], result["val_tokens"]) == (run.best_val_loss, 64)


def test_a_finished_run_that_is_resumed_has_no_second_result(text_file):
    run = ng.train("bottles.txt", **OPTIONS)
    before = result_of(run)
    ng.train(out_dir=run.out_dir, init_from="resume")
    assert result_of(run) == before


def test_a_text_that_is_only_overfitted_stops_early_and_says_so(text_file, capsys):
    text_file.write_text(WORDS)
    with closing(Console(bar=False)) as console:
        run = ng.train("bottles.txt", **{**OVERFITTING, "max_iters": 1200}, console=console)
    done, result = run.metrics[-1], result_of(run)
    assert (done["reason"], done["step"] < 1200) == ("patience", True)
    stored = json.loads((run.out_dir / "config.json").read_text(encoding="utf-8"))["config"]
    assert stored["patience"] > 5, "of a run with more steps than the recipe has"
    assert done["step"] == done["best_step"] + stored["patience"] * stored["eval_interval"]
    err = capsys.readouterr().err
    assert "more steps would hardly help" in err
    assert result["verdict"].startswith(f"overfitting since step {done['best_step']}")
    assert result["verdict"].replace("`max_iters`", "max_iters") in err.replace("`max_iters`", "max_iters")
    assert ng.evaluate(run)["step"] == done["best_step"]  # what is sampled, too


@pytest.fixture
def took_seconds(monkeypatch):
    """A step has taken 0.15 s, however long it took: twice the 4783 steps of the recipe for this text are 23.9 min."""
    monkeypatch.setattr(ng.Run, "seconds_until", lambda run, step: 0.15 * step)


@pytest.mark.usefixtures("took_seconds")
def test_info_and_eval_show_the_result(text_file, capsys):
    run = ng.train("bottles.txt", **OPTIONS)
    result = result_of(run)
    content = run_summary.summary(run)
    assert content["result"] == {name: value for name, value in result.items() if name != "kind"}
    capsys.readouterr()
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert f"{result['bits_per_character']:.3f} bits per character" in shown
    assert f"5-gram {result['five_gram']:.4f}" in shown
    assert "--minutes 24" in shown
    assert main(["eval"]) == 0
    shown = capsys.readouterr().out
    assert f"bits_per_character: {result['bits_per_character']:.4f}" in shown
    assert f"verdict: {result['verdict'].replace('`minutes=24`', '--minutes 24')}" in shown
    assert ng.evaluate(run)["verdict"] == result["verdict"]
    text_file.with_name("other.txt").write_text(text_file.read_text()[::-1])
    assert ng.evaluate(run, dataset="other.txt")["verdict"] == ""
    (run.out_dir / "metrics.jsonl").unlink()
    assert ng.evaluate(run)["verdict"] == ""


def test_a_damaged_result_in_the_metrics_is_ignored(text_file):
    run = ng.train("bottles.txt", **OPTIONS)
    path = run.out_dir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    damaged = {**result_of(run), "bigram": "2.5"}
    path.write_text("\n".join([*(line for line in lines if '"result"' not in line), json.dumps(damaged)]) + "\n")
    assert run_summary.summary(run)["result"] is None
    assert "result" not in run_summary.format_text(run_summary.summary(run)).split()


def test_the_console_shows_the_result_in_three_lines(capsys):
    console = Console(bar=False, spell=lambda text: text.replace("`minutes=3`", "--minutes 3"))
    record = ResultRecord(
        step=20,
        best_step=18,
        val_loss=1.5,
        val_tokens=1280,
        split_tokens=48_580,
        perplexity=4.4817,
        nats_per_character=1.5,
        bits_per_character=2.164,
        bits_per_byte=2.1,
        unigram=3.3,
        bigram=2.5,
        five_gram=1.9,
        verdict="still falling; train longer: `minutes=3`",
    )
    console.write(record)
    assert capsys.readouterr().err.splitlines() == [
        "val loss 1.5000 (1,280 of the 48,580 val tokens): perplexity 4.48 per token, 2.164 bits per character, "
        "2.100 per byte",
        "n-gram models of this text: unigram 3.3000, bigram 2.5000, 5-gram 1.9000",
        "still falling; train longer: --minutes 3",
    ]


def test_resuming_from_last_alone_has_the_loss_of_its_evaluations(text_file, tmp_path):
    """`best` was not copied, and the last step is not the best one."""
    options = {**TINY_GPT, "eval_tokens": 64, "eval_interval": 2, "batch_size": 8}
    run = ng.train("bottles.txt", **options, out_dir="run", max_iters=4, learning_rate=0.01)
    Path("copied").mkdir()
    shutil.copy(run.out_dir / "last.safetensors", "copied")
    records: list[Any] = list(
        ng.training(out_dir="copied", init_from="resume", max_iters=6, learning_rate=10.0, decay_lr=False)
    )
    assert [record.kind for record in records[-2:]] == ["result", "done"]
    assert records[-1].best_step <= 4
    assert records[-2].val_loss == records[-1].best_val_loss


def test_a_val_split_shorter_than_a_block_is_evaluated_whole(text_file):
    Path("short.txt").write_text("abcdefgh" * 120, encoding="utf-8")
    records: list[Any] = list(
        ng.training("short.txt", **{**TINY_GPT, "block_size": 128, "eval_tokens": 10, "max_iters": 2})
    )
    assert records[-2].val_tokens == records[-2].split_tokens == 96


@pytest.mark.usefixtures("took_seconds")
@pytest.mark.parametrize(("world_size", "proposed"), [(1, "`minutes=24`"), (2, "`max_iters=")])
def test_a_longer_run_is_proposed_by_an_option_that_its_ranks_may_use(text_file, world_size, proposed):
    run = ng.train("bottles.txt", **OPTIONS)
    data = ng.prepare("bottles.txt")
    assert run.best_val_loss is not None
    losses = Losses(run.best_val_loss, run.best_val_loss)
    verdict = compare(losses, data, data.train, data.val).verdict(
        run,
        config=TrainConfig.from_dict(OPTIONS),
        device="cpu",
        train_tokens=len(data.train),
        val_tokens=len(data.val),
        vocab_size=data.tokenizer.vocab_size,
        world_size=world_size,
    )
    assert f"train a new run for longer: {proposed}" in verdict


@pytest.mark.usefixtures("took_seconds")
@pytest.mark.parametrize(("dtype", "is_fast"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_longer_run_is_longer_than_the_recipe_for_the_number_format(
    text_file, monkeypatch, dtype, is_fast, world_size
):
    monkeypatch.setattr(devices, "multiplies_bfloat16_faster", lambda: is_fast)
    run, data, long = ng.train("bottles.txt", **OPTIONS), ng.prepare("bottles.txt"), 10**9
    assert run.best_val_loss is not None
    config = TrainConfig.from_dict({**OPTIONS, "dtype": dtype, "n_embd": 96})
    losses = Losses(run.best_val_loss, run.best_val_loss)
    verdict = compare(losses, data, data.train, data.val).verdict(
        run,
        config=config,
        device="cpu",
        train_tokens=long,
        val_tokens=len(data.val),
        vocab_size=28,
        world_size=world_size,
    )
    has_more = (dtype, is_fast, world_size) == ("bfloat16", True, 1)
    limit = 979 / (1 + 28 / 5120) if has_more else 430 / (1 + 28 / 16384)
    steps = math.ceil(limit * 4096 / config.tokens_per_step)
    proposed = f"`minutes={math.ceil(2 * 0.15 * steps / 60)}`" if world_size == 1 else f"`max_iters={2 * steps}`"
    assert verdict.endswith(f"train a new run for longer: {proposed}")
