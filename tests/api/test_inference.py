"""What a trained run is for: its network, text from it, its loss; and which checkpoint is meant."""

import gc
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import run_evaluation
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.data import batching
from nanogpt_lite.generation import cpu_linear, text_stream
from nanogpt_lite.generation import generate as token_loop
from nanogpt_lite.runs import run_folder


def test_load_returns_the_best_network_and_its_tokenizer(trained):
    model, tokenizer = ng.load(trained)
    best = checkpoint_file.read_checkpoint(trained.out_dir / "best.safetensors")
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, best.tensors[f"model.{name}"])
    assert tokenizer.decode(tokenizer.encode("10 green")) == "10 green"
    by_path, _ = ng.load("runs/bottles-1/last.safetensors")
    assert torch.equal(by_path.lm_head.weight, ng.load(trained.out_dir, checkpoint="last")[0].lm_head.weight)
    assert ng.load(trained, dtype="bfloat16")[0].lm_head.weight.dtype == torch.bfloat16


def test_sampling_from_a_loaded_network_equals_sampling_from_the_run(trained):
    loaded = ng.load(trained)
    before = {name: tensor.clone() for name, tensor in loaded[0].state_dict().items()}
    for number in (1, 3):
        options: ng.SampleOptions = {"start": "9 green", "num_samples": number, "max_new_tokens": 40}
        assert ng.sample(loaded, **options) == ng.sample(trained, **options)
    assert "".join(ng.stream(loaded, start="9", max_new_tokens=9)) == ng.sample(trained, start="9", max_new_tokens=9)[0]
    after = loaded[0].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("load_options", [{}, {"dtype": "bfloat16"}, {"int8": True}])
def test_sampling_from_a_loaded_network_uses_the_same_layers_and_logits_as_from_the_run(
    trained, monkeypatch, number, load_options
):
    generated = []

    def spy(model, prompt, config, recordings):
        with torch.inference_mode():
            logits = model(prompt[:, -16:])[0]
        generated.append(([type(module) for module in model.modules()], logits))
        return iter(())

    monkeypatch.setattr(text_stream, "generate", spy)
    ng.sample(trained, num_samples=number, max_new_tokens=100, **load_options)
    ng.sample(ng.load(trained, **load_options), num_samples=number, max_new_tokens=100)
    (types, logits), (loaded_types, loaded_logits) = generated
    if load_options.get("dtype") != "bfloat16" or cpu_linear.has_onednn_bfloat16():
        assert torch.nn.Linear not in types[:-1]  # the last one is the output
    assert loaded_types == types
    assert torch.equal(loaded_logits, logits)


def test_recordings_are_kept_for_a_loaded_network_alone(trained, monkeypatch):
    model, tokenizer = ng.load(trained)
    given = []
    monkeypatch.setattr(text_stream, "generate", lambda *_, recordings: given.append(recordings) or iter(()))
    wrapper: Any = torch.nn.Sequential(model)  # such as DataParallel
    for run in ((model, tokenizer), (model, tokenizer), (wrapper, tokenizer), trained):
        ng.sample(run, max_new_tokens=3)
    assert given[0] is given[1] is not None
    assert given[2:] == [None, None]


def test_sampling_leaves_a_loaded_network_its_mode_gradients_modules_and_memory(trained):
    loaded = ng.load(trained)
    model = loaded[0].train()
    modules, state = list(model.modules()), {name: id(tensor) for name, tensor in model.named_parameters()}
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    model(tokens, tokens)[1].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    copies = [gradient.clone() for gradient in gradients]
    texts = [chunk[0] for chunk in ng.stream_batch(loaded, max_new_tokens=100)]
    assert len(texts) > 1
    assert all(module.training for module in model.modules())
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == state
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(map(torch.equal, gradients, copies))
    gc.collect()
    packed = [thing for thing in gc.get_objects() if type(thing) is cpu_linear.BlockedLinear]
    assert not packed  # the fast layers are gone with the call


@pytest.mark.parametrize("change", ["data", "no_grad", "parameter", "hook", "adapter", "half_way"])
def test_sampling_sees_every_change_of_a_loaded_network(trained, change):
    """Also those that no version counter shows, and modules that are more than a linear layer."""
    loaded = ng.load(trained)
    options: dict[str, Any] = {"start": "9", "max_new_tokens": 60, "temperature": 0.0}
    before = ng.sample(loaded, **options)
    mlp: Any = loaded[0].transformer.h[0].get_submodule("mlp")
    if change == "data":
        mlp.c_fc.weight.data.mul_(-20)
    elif change == "no_grad":
        with torch.no_grad():
            mlp.c_fc.weight.mul_(-20)
    elif change == "parameter":
        mlp.c_fc.weight = torch.nn.Parameter(-20 * mlp.c_fc.weight.detach())
    elif change == "hook":
        mlp.c_fc.register_forward_hook(lambda module, inputs, output: -20 * output)
    elif change == "adapter":

        class Adapter(torch.nn.Linear):
            def forward(self, x):
                return -20 * super().forward(x)

        adapter = Adapter(mlp.c_fc.in_features, mlp.c_fc.out_features, bias=False)
        adapter.load_state_dict(mlp.c_fc.state_dict())
        mlp.c_fc = adapter
    else:
        loaded[0].bfloat16()
        assert ng.sample(loaded, **options) == ng.sample(trained, dtype="bfloat16", **options)
        return
    expected = [token.item() for token in generate(loaded[0].eval(), loaded[1].encode("9")[None], **options)]
    assert ng.sample(loaded, **options) == ["9" + loaded[1].decode(expected)]
    assert ng.sample(loaded, **options) != before


def generate(model, ids, *, start, **options):
    """The token loop with the network itself, without any fast layer."""
    prompt = torch.tensor(ids.tolist())
    return token_loop.generate(model, prompt, SampleConfig(**options))


def test_evaluate_is_the_loss_over_the_whole_of_both_splits(trained):
    model, _ = ng.load(trained)
    dataset = ng.prepare("bottles.txt")
    result = ng.evaluate(trained, threads=1)
    for split, tokens in (("val", dataset.val), ("train", dataset.train)):
        windows = batching.all_windows(tokens, rows=1, block_size=16)
        with torch.inference_mode():
            total = sum(model(x, y)[1].item() * y.numel() for x, y in windows)
        assert dict(result)[f"{split}_loss"] == pytest.approx(total / (len(tokens) - 1), rel=1e-5)
    assert result["val_loss"] == pytest.approx(trained.best_val_loss, rel=1e-6)
    assert result["step"] == 20


def test_evaluate_in_another_dtype_keeps_the_weights(text_file):
    run = ng.train("bottles.txt", **{**TINY, "dtype": "bfloat16"})
    recorded = [record["val_loss"] for record in run.metrics if record["kind"] == "eval"][-1]
    for dtype in ("auto", "bfloat16"):
        assert ng.evaluate(run, checkpoint="last", dtype=dtype, device="cpu", threads=1)["val_loss"] == recorded


def test_evaluate_on_another_text_does_not_change_its_prepared_data(trained, text_file):
    (text_file.parent / "other.txt").write_text("9 green bottles; " * 50)
    other = ng.prepare("other.txt")
    before = (other.path / "train.bin").read_bytes()
    folders = sorted(Path("data").iterdir())
    assert ng.evaluate(trained, dataset="other.txt")["val_tokens"] == len(other.val)
    assert (other.path / "train.bin").read_bytes() == before
    assert sorted(Path("data").iterdir()) == folders


def test_a_missing_checkpoint_error_lists_the_existing_ones(trained):
    with pytest.raises(ng.UserError, match="no checkpoint step_000003 in .*give one of best, last"):
        ng.load(trained, checkpoint="step_000003")
    with pytest.raises(ng.UserError, match="there is no run nowhere; runs with one: runs/bottles-1"):
        ng.load("nowhere")


def test_last_is_used_if_there_is_no_best_checkpoint(trained):
    (trained.out_dir / "best.safetensors").unlink()
    assert run_folder.find_checkpoint(trained).name == "last.safetensors"


def test_a_text_without_a_newline_has_another_default_prompt(text_file):
    (text_file.parent / "plain.txt").write_text("abcabc" * 100)
    run = ng.train("plain.txt", **TINY, sample_interval=10)
    assert ng.sample(run, max_new_tokens=5)[0][0] == "a"
    assert len([r for r in ng.train("plain.txt", **TINY, sample_interval=10).metrics if r["kind"] == "sample"]) == 2


def test_sampling_does_not_change_the_global_random_state(trained):
    before = torch.get_rng_state()
    ng.sample(trained, max_new_tokens=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_prompt_from_a_file(trained, text_file):
    (text_file.parent / "prompt.txt").write_bytes(b"\xef\xbb\xbf10 green\n")
    assert ng.sample(trained, start="FILE:prompt.txt", max_new_tokens=3)[0].startswith("10 green\n")
    with pytest.raises(ng.UserError, match=r"prompt file 'nix\.txt' cannot be read"):
        ng.sample(trained, start="FILE:nix.txt")
    (text_file.parent / "empty.txt").write_text("")
    with pytest.raises(ng.UserError, match="empty"):
        ng.sample(trained, start="FILE:empty.txt")


def test_a_prompt_outside_the_vocabulary_is_an_error(trained):
    with pytest.raises(ng.UserError, match=r"prompt has 'é' \(U\+00E9\) at position 3.*byte"):
        ng.sample(trained, start="10 é")


def test_int8_networks_sample_and_evaluate(trained):
    exact, rounded = (ng.evaluate(trained, int8=int8, dtype="float32")["val_loss"] for int8 in (False, True))
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.01)
    assert len(ng.sample(trained, start="9", max_new_tokens=20, int8=True)[0]) == 21


def test_the_error_without_a_run_names_the_newest_runs(text_file):
    for number in range(11):
        folder = Path(f"runs/r{number}")
        folder.mkdir(parents=True)
        (folder / "last.safetensors").touch()
        os.utime(folder / "last.safetensors", (number, number))
    with pytest.raises(ng.UserError, match=r"runs with one: runs/r10, runs/r9, .*, runs/r2, …$"):
        ng.load("nowhere")


@pytest.mark.linux("/proc/self/maps shows what is mapped")
def test_evaluation_on_another_text_has_closed_its_files_when_it_removes_them(text_file, monkeypatch):
    """Windows does not remove a file that is mapped."""
    run = ng.train("bottles.txt", **TINY)
    maps = []

    class WatchedDirectory(tempfile.TemporaryDirectory):
        def cleanup(self):
            lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
            maps.append([line for line in lines if self.name in line])
            super().cleanup()

        def __exit__(self, *error):
            self.cleanup()

    monkeypatch.setattr(run_evaluation, "TemporaryDirectory", WatchedDirectory)
    ng.evaluate(run, dataset="bottles.txt")
    assert maps == [[]]


@pytest.mark.linux("counts page faults with the module resource")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory anyway")
def test_freed_memory_is_kept_during_an_evaluation(text_file):
    run = ng.train("bottles.txt", **TINY)
    code = """
import resource, sys, torch
import nanogpt_lite as ng
from nanogpt_lite.trainer import evaluation

def page_faults():
    counts = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**22).sum()  # 16 MiB, which are freed
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # A small block may be cut from the freed one, so that it does not fit the next time. glibc keeps at most 7 small
    # blocks of a size for each thread (tcache_count in malloc.c), so that happens at most 7 times in a row.
    return min(counts)

original, counts = evaluation.mean_losses, []

def count_page_faults(*arguments):
    counts.append(page_faults())
    return original(*arguments)

evaluation.mean_losses = count_page_faults
ng.evaluate(sys.argv[1])
print(*counts)
"""
    # in a process of its own: the heap of this one may have free blocks from other tests
    # thresholds that are fixed, since otherwise glibc adapts them to the program
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", code, str(run.out_dir)]
    printed = subprocess.check_output(command, text=True, env={**os.environ, **thresholds})
    train, val = map(int, printed.split())
    assert max(train, val) < 2**24 / os.sysconf("SC_PAGE_SIZE") / 20
