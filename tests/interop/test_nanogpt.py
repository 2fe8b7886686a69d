"""nanoGPT's files, in and out: against the same network in transformers, and against a clone of nanoGPT.

`NANOGPT=path/to/clone pytest tests/test_convert.py --slow` runs its own train.py and sample.py too.
"""

import copy
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import read_network
from nanogpt_lite.cli.main import main
from nanogpt_lite.data import batching
from nanogpt_lite.interop import conversion
from nanogpt_lite.runs import run_files, run_folder
from nanogpt_lite.tokenizers import bpe, gpt2
from nanogpt_lite.trainer import step
from nanogpt_lite.trainer.state import restore_state

transformers = pytest.importorskip("transformers")
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": True}
SMALL = {**SHAPE, "preset": "cpu", "device": "cpu", "threads": 1, "batch_size": 4, "max_iters": 6, "eval_interval": 3}
OPTIONS = {"learning_rate": 0.01, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9, "warmup_iters": 2, "min_lr": 0.001}
OPTIONS |= {"max_iters": 20, "lr_decay_iters": 20, "batch_size": 4, "gradient_accumulation_steps": 1, "grad_clip": 1.0}
OPTIONS |= {"decay_lr": True, "eval_interval": 5, "eval_iters": 3, "log_interval": 1, "dropout": 0.0}
NANOGPTS_OWN = {"out_dir": "out", "eval_only": False, "always_save_checkpoint": True, "backend": "nccl"}
NANOGPTS_OWN |= {"wandb_log": False, "init_from": "scratch", "dtype": "float16", "device": "cpu", "compile": True}
STEPS = 3


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("executed").absolute(),))


def in_nanogpts_words(model):
    """The parameters of a GPT-2 of transformers under nanoGPT's names, in the order of its modules."""
    named = {}
    for name, parameter in model.named_parameters():
        turned = name.endswith("weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        named[name] = parameter.detach().t().clone() if turned else parameter.detach().clone()
    return {name: torch.nn.Parameter(tensor.contiguous()) for name, tensor in named.items()}


def optimizer_of(named):
    """AdamW as nanoGPT makes it."""
    decayed = [p for p in named.values() if p.dim() >= 2]
    rest = [p for p in named.values() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))


@pytest.fixture
def theirs(text_file):
    """out/ckpt.pt and data/bottles/meta.pkl as nanoGPT leaves them after three steps, and what they were made of."""
    torch.manual_seed(0)
    chars = sorted(set(text_file.read_text()))
    form = transformers.GPT2Config(
        vocab_size=len(chars), n_positions=16, n_embd=16, n_layer=2, n_head=2, activation_function="gelu"
    )
    model = transformers.GPT2LMHeadModel(form).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    named = in_nanogpts_words(model)
    optimizer = optimizer_of(named)
    for _ in range(STEPS):
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            turned = parameter.shape != named[name].shape or any(p in name for p in ("c_attn.w", "c_proj.w", "c_fc.w"))
            parameter.copy_(named[name].t() if turned else named[name])
    weights = {name: parameter.detach() for name, parameter in named.items()}
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 16, 16).tril() for n in range(2)}
    content = {
        "model": {**weights, **masks, "lm_head.weight": weights["transformer.wte.weight"]},
        "optimizer": optimizer.state_dict(),
        "model_args": {**SHAPE, "dropout": 0.0, "vocab_size": len(chars)},
        "iter_num": STEPS,
        "best_val_loss": torch.tensor(2.5),
        "config": {**OPTIONS, **NANOGPTS_OWN, **SHAPE, "dataset": "bottles"},
    }
    meta = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": {c: n for n, c in enumerate(chars)}}
    Path("out").mkdir()
    torch.save(content, "out/ckpt.pt")
    Path("data/bottles").mkdir(parents=True)
    Path("data/bottles/meta.pkl").write_bytes(pickle.dumps(meta))
    return content, model, named, optimizer


def test_a_dataset_is_a_name_and_no_way_out_of_runs(theirs):
    content, *_ = theirs
    saved_as(content, config={**content["config"], "dataset": "../../../bottles"})
    run = conversion.from_nanogpt("out/ckpt.pt", meta="data/bottles/meta.pkl")
    assert run.out_dir == Path("runs/bottles-1")
    assert read_checkpoint(run.out_dir / "last.safetensors").metadata.config["dataset"] == "bottles"


def test_another_folder_s_characters_are_not_looked_for(theirs):
    content, *_ = theirs
    Path("data/bottles").rename("bottles")
    for dataset in ("../bottles", Path("bottles").absolute()):
        saved_as(content, config={**content["config"], "dataset": str(dataset)})
        with pytest.raises(ng.UserError, match=r"there is no data/.*/meta.pkl, neither here"):
            conversion.from_nanogpt("out/ckpt.pt")


def test_from_inside_its_folder_the_characters_are_found(theirs, monkeypatch):
    monkeypatch.chdir("out")
    assert conversion.from_nanogpt("ckpt.pt").out_dir == Path("runs/bottles-1")


@pytest.mark.parametrize("done", [True, False])
def test_two_imports_into_one_folder_do_not_mix(theirs, monkeypatch, done):
    """The other one is done, or at work, between this one's look at the folder and its first file."""
    claim = run_files.create_run_dir

    def claimed(*arguments):
        monkeypatch.setattr(run_files, "create_run_dir", claim)
        if done:
            conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
        folder = claim(*arguments)
        if not done:
            other.enter_context(run_files.lock_run(folder))
        return folder

    monkeypatch.setattr(run_files, "create_run_dir", claimed)
    told = "holds a run" if done else "is in use by another training"
    with ExitStack() as other, pytest.raises(ng.UserError, match=told):
        conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
    assert len(list(Path("runs/a").iterdir())) == (2 if done else 0)


def saved_as(content, **changes):
    torch.save({**content, **changes}, "out/ckpt.pt")


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "_orig_mod.module."])
def test_the_text_is_that_of_the_network(theirs, wrapper):
    content, model, _, _ = theirs
    saved_as(content, model={f"{wrapper}{name}": tensor for name, tensor in content["model"].items()})
    run = conversion.from_nanogpt("out/ckpt.pt")
    assert sorted(path.name for path in run.out_dir.iterdir()) == ["best.safetensors", "last.safetensors"]
    loaded, tokenizer = ng.load(run, device="cpu")
    ids = tokenizer.encode("7 green ").tolist()
    with torch.no_grad():
        ours, expected = loaded(torch.tensor([ids]))[0], model(torch.tensor([ids])).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    drawn = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
    assert ng.sample(run, start="7 green ", temperature=0.0, max_new_tokens=8, device="cpu")[0] == tokenizer.decode(
        drawn
    )


def test_training_goes_on_where_nanogpt_stopped(theirs):
    """The next step, from the same gradient: the same weights, by AdamW's means, its count and the learning rate."""
    _, _, named, optimizer = theirs
    run = conversion.from_nanogpt("out/ckpt.pt")
    saved = read_checkpoint(run.out_dir / "last.safetensors")
    restored = restore_state(saved, {"grad_clip": 0.0})
    assert (restored.step, restored.best_val_loss, restored.config.dtype) == (STEPS, 2.5, "float32")
    assert restored.config.eval_iters == 3
    tokens = np.random.default_rng(0).integers(0, restored.tokenizer.vocab_size, 500).astype(np.uint16)
    batch = batching.random_batch(tokens, rows=4, block_size=16, seed=1, step=3)
    twin = copy.deepcopy(restored.model)
    twin(*batch)[1].backward()
    for name, parameter in twin.named_parameters():
        named[name].grad = parameter.grad
    for group in optimizer.param_groups:
        group["lr"] = 0.001 + 0.5 * (1 + np.cos(np.pi * (3 - 2) / (20 - 2))) * (0.01 - 0.001)  # nanoGPT's get_lr(3)
    optimizer.step()
    step.train_step(restored, restored.model, batch)
    for name, parameter in restored.model.named_parameters():
        torch.testing.assert_close(parameter, named[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("device", "dtype"), [("cuda:1", "float16"), ("mps", "float32"), ("xpu", "float32")])
def test_it_goes_on_in_the_format_in_which_nanogpt_computed(theirs, device, dtype):
    """Its train.py takes every device without "cuda" in its name for a CPU, and computes there as it is."""
    content, *_ = theirs
    saved_as(content, config={**content["config"], "device": device})
    saved = read_checkpoint(conversion.from_nanogpt("out/ckpt.pt").out_dir / "last.safetensors")
    assert saved.metadata.config["dtype"] == dtype


def test_it_resumes_on_its_text_and_knows_it_from_then_on(theirs):
    run = conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/taken")
    ng.train("bottles.txt", out_dir=run.out_dir, init_from="resume", max_iters=6, device="cpu", threads=1)
    data = ng.prepare("bottles.txt")
    assert checkpoint_file.read_checkpoint(Path("runs/taken/last.safetensors")).metadata.dataset_sha256 == data.sha256
    assert np.isfinite(ng.evaluate(run, dataset="bottles.txt", device="cpu")["val_loss"])
    assert min(record["val_loss"] for record in run.metrics if record["kind"] == "eval") > run.best_val_loss == 2.5


def test_out_and_in_again_is_the_same(text_file):
    run = ng.train("bottles.txt", **SMALL, dropout=0.1)
    path = conversion.to_nanogpt(run, "out", checkpoint="last", dataset=True)
    back = conversion.from_nanogpt(path, out_dir="runs/back", meta="out/data/bottles/meta.pkl")
    before, after = (read_checkpoint(one.out_dir / "last.safetensors") for one in (run, back))
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    kept = {name: value for name, value in before.metadata.config.items() if name not in ("threads", "dataset")}
    assert {name: after.metadata.config[name] for name in kept} == kept
    assert after.metadata.device == before.metadata.device == "cpu"  # else another number format goes on
    for split in ("train", "val"):
        assert Path(f"out/data/bottles/{split}.bin").read_bytes() == Path(f"data/bottles/{split}.bin").read_bytes()


def test_what_is_written_is_what_torch_makes(theirs):
    """The state of the optimizer is what PyTorch's AdamW loads, each mean beside its parameter."""
    _, _, named, optimizer = theirs
    run = conversion.from_nanogpt("out/ckpt.pt")
    content = torch.load(conversion.to_nanogpt(run, "again"), weights_only=True)
    fresh = optimizer_of(in_nanogpts_words(theirs[1]))
    fresh.load_state_dict(content["optimizer"])
    for one, other in zip(fresh.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(one[slot], other[slot]) for slot in ("step", "exp_avg", "exp_avg_sq"))
    assert content["model"].keys() == {*named, "lm_head.weight"}
    assert content["model_args"] == {**SHAPE, "dropout": 0.0, "vocab_size": theirs[0]["model_args"]["vocab_size"]}
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
        ({"preset": "modern-cpu"}, "position=rotary, qk_norm=True, activation=relu2, tied=False, ngram=4"),
        ({"tokenizer": "byte"}, "tokenizer=byte"),
        ({"activation": "gelu_tanh"}, "activation=gelu_tanh"),
    ],
)
def test_what_nanogpt_lacks_is_refused(text_file, options, named):
    run = ng.train("bottles.txt", **{**SMALL, **options})
    with pytest.raises(ng.UserError, match=f"nanoGPT has no network .* with {named}; train one that it has"):
        conversion.to_nanogpt(run, "out")
    assert not Path("out").exists()


def test_nothing_is_executed_on_the_way_in(theirs, figures):
    content = theirs[0]
    for bomb in ({**content, "config": Bomb()}, {**content, "model": {"x": Bomb()}}, Bomb()):
        torch.save(bomb, "out/ckpt.pt")
        with pytest.raises(ng.UserError, match="without executing code in it"):
            conversion.from_nanogpt("out/ckpt.pt")
        figures["pickles refused"] += 1
    saved_as(content)
    for bomb in (Bomb(), {"itos": Bomb()}, {"itos": {0: Bomb()}}):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            Path("data/bottles/meta.pkl").write_bytes(pickle.dumps(bomb, protocol))
            with pytest.raises(ng.UserError, match=r"not a meta.pkl of characters \(it refers to"):
                conversion.from_nanogpt("out/ckpt.pt")
            figures["pickles refused"] += 1
    assert not Path("executed").exists()
    assert not Path("runs").exists()


def test_damaged_data_is_not_exported(text_file):
    run = ng.train("bottles.txt", **SMALL)
    path = Path("data/bottles/train.bin")
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    with pytest.raises(ng.UserError, match="a file is damaged, or was changed"):
        conversion.to_nanogpt(run, "out", dataset=True)
    assert not Path("out").exists()


def test_on_a_full_disk_an_export_leaves_what_was_there(text_file, figures):
    """In a process that may write 30 kB a file at most."""
    run = ng.train("bottles.txt", **SMALL)
    conversion.to_nanogpt(run, "there", dataset=True)
    conversion.to_huggingface(run, "there")
    before = {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()}
    for export in (["--to", "hf"], ["--to", "nanogpt", "--dataset"], ["--weights"]):
        code = f"""if True:
            import resource, signal, sys
            from nanogpt_lite.cli.main import main
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
            sys.exit(main(["export", "--out_dir", {str(run.out_dir)!r}, "--overwrite", "--path", "there", *{export}]))
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        told = r"there/.*(safetensors|ckpt.pt): File too large; raise the limit on the size of a file\n$"
        assert re.search(told, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert {path: path.read_bytes() for path in Path("there").rglob("*") if path.is_file()} == before
        figures["refused by the system"] += 1


NO_CHECKPOINT = "is not a checkpoint of nanoGPT's train.py"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_args": {}}, NO_CHECKPOINT),
        ({"model_args": None}, NO_CHECKPOINT),
        ({"config": []}, NO_CHECKPOINT),
        ({"model": {}}, "do not fit the network that its config describes"),
        ({"optimizer": {"state": {0: {}}}}, NO_CHECKPOINT),
        ({"optimizer": None}, NO_CHECKPOINT),
        ({"model": {"transformer.wpe.weight": torch.tensor(math.nan)}}, "some of its numbers are not finite"),
        ({"model": {"transformer.wpe.weight": torch.tensor(1e300, dtype=torch.float64)}}, "are not finite"),
        ({"iter_num": "three"}, NO_CHECKPOINT),
        ({"iter_num": math.inf}, NO_CHECKPOINT),
        ({"iter_num": -5}, NO_CHECKPOINT),
        ({"best_val_loss": "low"}, NO_CHECKPOINT),
        ({"best_val_loss": -1e40}, NO_CHECKPOINT),
        ({"model_args": {**SHAPE, "vocab_size": 7}}, "has a vocabulary of 7 tokens"),
        ({"model_args": {**SHAPE, "n_layer": 10**9, "vocab_size": 34}}, "n_layer=1000000000 is an invalid value"),
    ],
)
def test_what_is_no_checkpoint_of_nanogpt_is_refused(theirs, changes, told):
    saved_as(theirs[0], **changes)
    with pytest.raises(ng.UserError, match=told):
        conversion.from_nanogpt("out/ckpt.pt")
    assert not Path("runs").exists()


def test_numbers_that_are_not_there_cost_no_memory(theirs):
    """A tensor in a file may be one number, repeated as often as it says."""
    content, *_ = theirs
    vocab_size = content["model_args"]["vocab_size"]
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in content["model"].items()}
    wide = {name: torch.zeros(()).expand([3200 if n == 16 else n for n in t.shape]) for name, t in weights.items()}
    saved_as(content, model=wide, model_args={**SHAPE, "n_embd": 3200, "vocab_size": vocab_size})
    with pytest.raises(ng.UserError, match="more elements than the file holds"):
        conversion.from_nanogpt("out/ckpt.pt")
    slots = {n: {"exp_avg": torch.zeros(()).expand(10**9)} for n in range(3)}
    saved_as(content, optimizer={"state": slots})
    with pytest.raises(ng.UserError, match="more elements than the file holds"):
        conversion.from_nanogpt("out/ckpt.pt")
    with ZipFile("out/ckpt.pt") as stored, ZipFile("out/packed.pt", "w", ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ng.UserError, match="cannot be read without") as refused:
        conversion.from_nanogpt("out/packed.pt")
    assert "it is compressed" in str(refused.value.__cause__)
    Path("data/bottles/meta.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")  # the 4,294,967,295th thing to remember
    with pytest.raises(ng.UserError, match="more memory than its size justifies"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_without_an_optimizer_or_an_option_it_is_taken_all_the_same(theirs):
    content, *_ = theirs
    del content["optimizer"], content["config"]["min_lr"]
    saved_as(content)
    run = conversion.from_nanogpt("out")  # the folder will do too
    assert ng.train("bottles.txt", out_dir=run.out_dir, init_from="resume", max_iters=5, device="cpu")


def test_an_output_of_its_own_is_no_nanogpts(theirs):
    content, *_ = theirs
    other = content["model"]["lm_head.weight"] + 1
    saved_as(content, model={**content["model"], "lm_head.weight": other})
    with pytest.raises(ng.UserError, match="its output matrix differs from its token embedding"):
        conversion.from_nanogpt("out/ckpt.pt")


@pytest.mark.parametrize("loss", [1e9, math.nan, math.inf])
def test_no_loss_is_none_in_both_directions(theirs, loss):
    saved_as(theirs[0], best_val_loss=loss)
    run = conversion.from_nanogpt("out/ckpt.pt")
    assert read_checkpoint(run.out_dir / "last.safetensors").metadata.best_val_loss is None
    content = torch.load(conversion.to_nanogpt(run, "again"), weights_only=True)
    assert content["best_val_loss"] == 1e9  # with which nanoGPT begins


def test_a_lowest_rate_above_the_rate_is_fine_where_the_rate_stays(theirs):
    """nanoGPT's own finetuning has it so."""
    content, *_ = theirs
    saved_as(content, config={**content["config"], "decay_lr": False, "min_lr": 1.0})
    config = read_network(
        checkpoint_file.read_checkpoint(conversion.from_nanogpt("out/ckpt.pt").out_dir / "last.safetensors")
    )[0]
    assert (config.learning_rate, config.min_lr) == (0.01, 0.01)


def test_a_rate_that_would_rise_stays_and_is_told_of(theirs):
    content, *_ = theirs
    saved_as(content, config={**content["config"], "min_lr": 1.0})
    with pytest.warns(UserWarning, match="its learning rate would rise to min_lr; here it stays constant"):
        run = conversion.from_nanogpt("out/ckpt.pt")
    config = read_network(read_checkpoint(run.out_dir / "last.safetensors"))[0]
    assert (config.learning_rate, config.min_lr) == (0.01, 0.01)


def test_too_little_memory_is_no_damage(theirs, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_without_a_network_gpt2s_tokens_are_a_fault_of_the_world(theirs, monkeypatch):
    def unreachable():
        raise ng.ExternalError("no route to host")

    content, *_ = theirs
    Path("data/bottles/meta.pkl").unlink()
    saved_as(content, model_args={**content["model_args"], "vocab_size": 50257})
    monkeypatch.setattr(gpt2, "fetch_gpt2_merges", unreachable)
    with pytest.raises(ng.ExternalError, match="no route"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_an_export_is_no_run_and_replaces_none(theirs):
    run = conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/a")
    conversion.to_huggingface(run, "runs/hf")
    conversion.export_weights(run, "runs/alone/weights.safetensors")
    assert run_folder.newest_run().out_dir == Path("runs/a")
    for export in (conversion.to_huggingface, conversion.to_nanogpt):
        with pytest.raises(ng.UserError, match="runs/a holds a run"):
            export(run, "runs/a", overwrite=True)
        with pytest.raises(ng.UserError, match="is a file, and the export is several files; give a folder"):
            export(run, "out/ckpt.pt", overwrite=True)
    with pytest.raises(ng.UserError, match="is a checkpoint that is needed to resume its run"):
        conversion.export_weights(run, "runs/a/last.safetensors", overwrite=True)
    Path("elsewhere").mkdir()
    assert conversion.export_weights(run, "elsewhere") == Path("elsewhere/weights.safetensors")


def gpt2_merges():
    """As many as GPT-2 has: every pair of two bytes, as far as they go."""
    octets = list(bpe.unicode_to_bytes())
    return [f"{one} {other}" for one in octets for other in octets][:50000]


@pytest.mark.parametrize("size", [50257, 50304])
def test_without_characters_the_tokens_are_those_of_gpt2(theirs, monkeypatch, size):
    """With and without the rows that fill nanoGPT's vocabulary up."""
    content, *_ = theirs
    Path("data/bottles/meta.pkl").unlink()
    wte = torch.randn(size, 16)
    args = {**content["model_args"], "vocab_size": size}
    weights = {**content["model"], "transformer.wte.weight": wte, "lm_head.weight": wte}
    saved_as(content, model=weights, model_args=args, optimizer={"state": {}})
    with pytest.raises(ng.UserError, match="give its merges.txt"):
        Path("merges.txt").write_text("a b\n")
        conversion.from_nanogpt("out/ckpt.pt", meta="merges.txt")
    monkeypatch.setattr(bpe, "GPT2_MERGES_SHA256", hashlib.sha256("\n".join(gpt2_merges()).encode()).hexdigest())
    Path("merges.txt").write_text("#version: 0.2\n" + "\n".join(gpt2_merges()) + "\n", encoding="utf-8")
    run = conversion.from_nanogpt("out/ckpt.pt", meta="merges.txt")
    model, tokenizer = ng.load(run, device="cpu")
    assert model.transformer.wte.weight.shape == (size, 16)
    assert tokenizer.vocab_size == size
    assert tokenizer.encode("<|endoftext|>").tolist() == [50256]
    monkeypatch.setattr(gpt2, "fetch_gpt2_merges", gpt2_merges)
    assert ng.load(conversion.from_nanogpt("out/ckpt.pt"))[1].to_json() == tokenizer.to_json()
    back = torch.load(conversion.to_nanogpt(run, "again"), weights_only=True)
    assert back["model_args"] == args
    assert torch.equal(back["model"]["lm_head.weight"], wte)
    assert not Path("again/data").exists()  # nanoGPT takes GPT-2's tokens where there is no meta.pkl
    if size == 50304:
        theirs = conversion.to_huggingface(run, "folder") / "config.json"
        assert json.loads(theirs.read_text())["eos_token_id"] == 50256
        assert (
            ng.load(ng.train("bottles.txt", init_from="folder", max_iters=1, device="cpu"))[1].to_json()
            == tokenizer.to_json()
        )
    for content in ("{}", "[" * 100_000, "é é é"):
        Path("merges.json").write_text(content, encoding="utf-8")
        with pytest.raises(ng.UserError, match=r"merges.json has no tokenizer like GPT-2's"):
            conversion.from_nanogpt("out/ckpt.pt", meta="merges.json")


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {"itos": {0: "a"}, "stoi": {"a": 1}},
        {"itos": {0: "ab"}},
        {"itos": {1: "a"}},
        {"itos": []},
        {},
        [],
        {"itos": {0: 7}},
    ],
)
def test_what_are_no_characters_is_refused(theirs, meta):
    Path("data/bottles/meta.pkl").unlink() if meta is None else Path("data/bottles/meta.pkl").write_bytes(
        pickle.dumps(meta)
    )
    with pytest.raises(ng.UserError, match="`meta`"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_files_that_are_no_pickles_are_refused(theirs):
    whole = Path("out/ckpt.pt").read_bytes()
    flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1 :]
    for content in (b"", b"PK\x03\x04", b"x" * 100, whole[:-100], flipped):
        Path("out/ckpt.pt").write_bytes(content)
        with pytest.raises(ng.UserError, match="give a ckpt.pt"):
            conversion.from_nanogpt("out/ckpt.pt")
    torch.save([1], "out/ckpt.pt")
    with pytest.raises(ng.UserError, match="give its ckpt.pt"):
        conversion.from_nanogpt("out/ckpt.pt")
    with pytest.raises(ng.UserError, match="there is no file"):
        conversion.from_nanogpt("nowhere.pt")


def test_weights_alone_load_and_sample(text_file):
    run = ng.train("bottles.txt", **SMALL)
    path = conversion.export_weights(run)
    assert path == run.out_dir / "weights.safetensors"
    assert path.stat().st_size < 0.45 * (run.out_dir / "best.safetensors").stat().st_size
    options = {"start": "7 green", "max_new_tokens": 20, "device": "cpu"}
    assert ng.sample(path, **options) == ng.sample(run, **options) == ng.sample(run, checkpoint="weights", **options)
    assert not [name for name in read_checkpoint(path).tensors if name.startswith("optimizer")]


def test_the_command_line(theirs, capsys):
    assert main(["import", "--from", "out/ckpt.pt", "--out_dir", "runs/a"]) == 0
    assert main(["export", "--out_dir", "runs/a", "--to", "nanogpt"]) == 0
    assert main(["export", "--out_dir", "runs/a", "--to=hf", "--path", "there"]) == 0
    assert main(["export", "--out_dir", "runs/a", "--weights"]) == 0
    assert capsys.readouterr().out.split() == [
        "runs/a",
        "runs/a/nanogpt/ckpt.pt",
        "there",
        "runs/a/weights.safetensors",
    ]
    for line in ("--to nanogpt", "--to=hf --path there", "--weights"):
        assert main(["export", "--out_dir", "runs/a", *line.split()]) == 2
        assert "would be replaced; give another path" in capsys.readouterr().err
        assert main(["export", "--out_dir", "runs/a", "--overwrite", *line.split()]) == 0
    capsys.readouterr()
    for line, told in [
        ("import", "give a checkpoint of nanoGPT: --from"),
        ("import --from out/ckpt.pt --out_dir runs/a", "holds a run already; give another --out_dir"),
        ("export --out_dir runs/a", "what to export? give one of --to"),
        ("export --out_dir runs/a --to nanogtp", "did you mean nanogpt"),
        ("export --out_dir runs/a --to hf --weights", "what to export? give one of --to"),
        ("export --out_dir runs/a --to hf --dataset", "--dataset is for --to nanogpt"),
    ]:
        assert main(line.split()) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("NANOGPT" not in os.environ, reason="set NANOGPT to a clone of nanoGPT, with tiktoken installed")
def test_a_clone_of_nanogpt_gives_and_takes(text_file):
    clone = Path(shutil.copytree(os.environ["NANOGPT"], "clone", ignore=shutil.ignore_patterns(".git")))
    data = ng.prepare("bottles.txt")
    folder = clone / "data" / "bottles"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        shutil.copy(data.path / name, folder)
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
    best = ng.Run("runs/ours").best_val_loss
    assert best < their_loss + 0.02
    conversion.to_nanogpt(ours, clone / "out", overwrite=True)
    assert run("sample.py", "--start=7 green", "--num_samples=1", "--max_new_tokens=50", "--top_k=1")
    printed = run("train.py", *flags, "--init_from=resume", "--max_iters=200", "--lr_decay_iters=200")
    losses = [float(part.split("val loss ")[1].split()[0]) for part in printed.split("step ")[1:]]
    assert losses[0] == pytest.approx(best, abs=0.1)
    assert losses[-1] < losses[0] + 0.02
