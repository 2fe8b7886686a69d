"""Export to nanoGPT: what PyTorch's AdamW and nanoGPT itself read.

`NANOGPT=path/to/clone pytest tests/interop/test_nanogpt_export.py --slow` runs its train.py and sample.py too.
"""

import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nanogpt_files import SHAPE, SMALL, make_nanogpt_ckpt, make_nanogpt_optimizer, nanogpt_parameters, save_ckpt

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.interop import conversion


@pytest.fixture
def nanogpt_ckpt(text_file):
    return make_nanogpt_ckpt(text_file)


def test_export_then_import_gives_the_same_checkpoint(text_file):
    run = ng.train("bottles.txt", **SMALL, dropout=0.1)
    path = conversion.to_nanogpt(run, "out", checkpoint="last", dataset=True)
    back = conversion.from_nanogpt(path, out_dir="runs/back", meta="out/data/bottles/meta.pkl")
    before, after = (read_checkpoint(one.out_dir / "last.safetensors") for one in (run, back))
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    unchanged = before.metadata.config.replace({"threads": 1, "dataset": "bottles"})
    assert after.metadata.config.replace({"threads": 1, "dataset": "bottles"}) == unchanged
    assert after.metadata.device == before.metadata.device == "cpu"  # else another number format goes on
    for split in ("train", "val"):
        assert Path(f"out/data/bottles/{split}.bin").read_bytes() == Path(f"data/bottles/{split}.bin").read_bytes()


def test_exported_optimizer_state_loads_into_pytorch_adamw(nanogpt_ckpt):
    """The state of the optimizer is what PyTorch's AdamW loads, each mean beside its parameter."""
    _, _, named, optimizer = nanogpt_ckpt
    run = conversion.from_nanogpt("out/ckpt.pt")
    # nanoGPT's format is torch.save's; weights_only executes no code
    content = torch.load(conversion.to_nanogpt(run, "again"), weights_only=True)
    fresh = make_nanogpt_optimizer(nanogpt_parameters(nanogpt_ckpt[1]))
    fresh.load_state_dict(content["optimizer"])
    for one, other in zip(fresh.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(one[slot], other[slot]) for slot in ("step", "exp_avg", "exp_avg_sq"))
    assert content["model"].keys() == {*named, "lm_head.weight"}
    assert content["model_args"] == {
        **SHAPE,
        "dropout": 0.0,
        "vocab_size": nanogpt_ckpt[0]["model_args"]["vocab_size"],
    }
    groups = [{name: group[name] for name in ("lr", "betas", "weight_decay")} for group in fresh.param_groups]
    rate = 0.001 + 0.5 * (1 + np.cos(np.pi * (3 - 2) / (20 - 2))) * (0.01 - 0.001)  # nanoGPT's get_lr(3)
    assert [group["lr"] for group in groups] == pytest.approx([rate, rate])
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [group["betas"] for group in groups] == [(0.8, 0.9)] * 2
    # pickle.loads is how nanoGPT reads it; both were made by this test
    meta = pickle.loads(Path("again/data/bottles/meta.pkl").read_bytes())
    assert meta == pickle.loads(Path("data/bottles/meta.pkl").read_bytes())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"preset": "modern-cpu"},
            "position=rotary, qk_norm=True, activation=relu2, tied=False, ngram=4, ngram_expert=8",
        ),
        ({"tokenizer": "byte"}, "tokenizer=byte"),
        ({"activation": "gelu_tanh"}, "activation=gelu_tanh"),
    ],
)
def test_a_network_or_tokenizer_that_nanogpt_lacks_is_refused(text_file, options, named):
    run = ng.train("bottles.txt", **{**SMALL, **options})
    with pytest.raises(ng.UserError, match=f"nanoGPT has no network .* with {named}; train one that it has"):
        conversion.to_nanogpt(run, "out")
    assert not Path("out").exists()


def test_a_damaged_dataset_is_not_exported(text_file):
    run = ng.train("bottles.txt", **SMALL)
    path = Path("data/bottles/train.bin")
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(ng.UserError, match="a file is damaged, or was changed"):
        conversion.to_nanogpt(run, "out", dataset=True)
    assert not Path("out").exists()


@pytest.mark.parametrize("loss", [1e9, math.nan, math.inf])
def test_no_val_loss_is_none_here_and_1e9_in_nanogpt(nanogpt_ckpt, loss):
    save_ckpt(nanogpt_ckpt[0], best_val_loss=loss)
    run = conversion.from_nanogpt("out/ckpt.pt")
    assert read_checkpoint(run.out_dir / "last.safetensors").metadata.best_val_loss is None
    # nanoGPT's format is torch.save's; weights_only executes no code
    content = torch.load(conversion.to_nanogpt(run, "again"), weights_only=True)
    assert content["best_val_loss"] == 1e9  # the initial value in nanoGPT


@pytest.mark.slow
@pytest.mark.skipif("NANOGPT" not in os.environ, reason="set NANOGPT to a clone of nanoGPT, with tiktoken installed")
def test_a_clone_of_nanogpt_reads_and_writes_the_same_checkpoints(text_file):
    clone = Path(shutil.copytree(os.environ["NANOGPT"], "clone", ignore=shutil.ignore_patterns(".git")))
    data = ng.prepare("bottles.txt")
    folder = clone / "data" / "bottles"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        shutil.copy(data.path / name, folder)
    assert isinstance(data.tokenizer, ng.CharTokenizer)
    chars = dict(enumerate(data.tokenizer.chars))
    meta = {"vocab_size": len(chars), "itos": chars, "stoi": {char: number for number, char in chars.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))

    def run(script, *flags):
        command = [sys.executable, script, "--device=cpu", "--out_dir=out", *flags]
        return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True, timeout=300).stdout

    flags = ["--dataset=bottles", "--compile=False", "--eval_iters=5", "--eval_interval=50", "--batch_size=8"]
    flags += ["--gradient_accumulation_steps=1", "--learning_rate=0.01", "--warmup_iters=5", "--block_size=64"]
    shape = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--dropout=0.0"]
    printed = run(
        "train.py", *flags, *shape, "--max_iters=100", "--lr_decay_iters=200", "--always_save_checkpoint=True"
    )
    their_loss = float(printed.split("step 100:")[1].split("val loss ")[1].split()[0])
    ours = conversion.from_nanogpt(clone / "out" / "ckpt.pt", out_dir="runs/ours")
    assert ng.evaluate(ours, dataset="bottles.txt", device="cpu")["val_loss"] == pytest.approx(their_loss, abs=0.1)
    drawn = run("sample.py", "--start=7 green", "--num_samples=1", "--max_new_tokens=50", "--top_k=1")
    text = ng.sample(ours, start="7 green", temperature=0.0, max_new_tokens=50, device="cpu")[0]
    assert f"\n{text}\n------" in drawn
    ng.train("bottles.txt", out_dir="runs/ours", init_from="resume", max_iters=150, device="cpu")
    best = ng.Run(Path("runs/ours")).best_val_loss
    assert best is not None
    assert best < their_loss + 0.02
    conversion.to_nanogpt(ours, clone / "out", overwrite=True)
    assert run("sample.py", "--start=7 green", "--num_samples=1", "--max_new_tokens=50", "--top_k=1")
    printed = run("train.py", *flags, "--init_from=resume", "--max_iters=200", "--lr_decay_iters=200")
    losses = [float(part.split("val loss ")[1].split()[0]) for part in printed.split("step ")[1:]]
    assert losses[0] == pytest.approx(best, abs=0.1)
    assert losses[-1] < losses[0] + 0.02
