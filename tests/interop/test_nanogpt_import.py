"""Import from nanoGPT: against the same network in transformers and PyTorch's AdamW; invalid files are refused."""

import copy
import math
import pickle
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from nanogpt_files import SHAPE, STEPS, Canary, make_nanogpt_ckpt, save_ckpt

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.data import batching
from nanogpt_lite.interop import conversion
from nanogpt_lite.trainer import step
from nanogpt_lite.trainer.state import restore_state


@pytest.fixture
def nanogpt_ckpt(text_file):
    return make_nanogpt_ckpt(text_file)


def test_a_dataset_path_cannot_leave_the_runs_folder(nanogpt_ckpt):
    content, *_ = nanogpt_ckpt
    save_ckpt(content, config={**content["config"], "dataset": "../../../bottles"})
    run = conversion.from_nanogpt("out/ckpt.pt", meta="data/bottles/meta.pkl")
    assert run.out_dir == Path("runs/bottles-1")
    assert read_checkpoint(run.out_dir / "last.safetensors").metadata.config.dataset == "bottles"


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "_orig_mod.module."])
def test_logits_and_greedy_text_equal_those_of_the_imported_network(nanogpt_ckpt, wrapper):
    content, model, _, _ = nanogpt_ckpt
    save_ckpt(content, model={f"{wrapper}{name}": tensor for name, tensor in content["model"].items()})
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


def test_the_next_step_after_import_equals_that_of_pytorch_adamw(nanogpt_ckpt):
    """The next step, from the same gradient: the same weights, by AdamW's means, its count and the learning rate."""
    _, _, named, optimizer = nanogpt_ckpt
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
def test_imported_dtype_is_the_one_in_which_nanogpt_computed(nanogpt_ckpt, device, dtype):
    """Its train.py takes every device without "cuda" in its name for a CPU, and computes there as it is."""
    content, *_ = nanogpt_ckpt
    save_ckpt(content, config={**content["config"], "device": device})
    saved = read_checkpoint(conversion.from_nanogpt("out/ckpt.pt").out_dir / "last.safetensors")
    assert saved.metadata.config.dtype == dtype


def test_an_imported_run_resumes_and_then_stores_the_hash_of_its_dataset(nanogpt_ckpt):
    run = conversion.from_nanogpt("out/ckpt.pt", out_dir="runs/taken")
    ng.train("bottles.txt", out_dir=run.out_dir, init_from="resume", max_iters=6, device="cpu", threads=1)
    data = ng.prepare("bottles.txt")
    assert checkpoint_file.read_checkpoint(Path("runs/taken/last.safetensors")).metadata.dataset_sha256 == data.sha256
    assert np.isfinite(ng.evaluate(run, dataset="bottles.txt", device="cpu")["val_loss"])
    assert min(record["val_loss"] for record in run.metrics if record["kind"] == "eval") > run.best_val_loss == 2.5


def test_import_executes_no_code_of_a_pickle(nanogpt_ckpt, case_counts):
    content = nanogpt_ckpt[0]
    for bomb in (
        {**content, "config": Canary()},
        {**content, "model": {"x": Canary()}},
        Canary(),
    ):
        torch.save(bomb, "out/ckpt.pt")
        with pytest.raises(ng.UserError, match="without executing code in it"):
            conversion.from_nanogpt("out/ckpt.pt")
        case_counts["pickles refused"] += 1
    save_ckpt(content)
    for bomb in (
        Canary(),
        {"itos": Canary()},
        {"itos": {0: Canary()}},
    ):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            Path("data/bottles/meta.pkl").write_bytes(pickle.dumps(bomb, protocol))
            with pytest.raises(ng.UserError, match=r"not a meta.pkl of characters \(it refers to"):
                conversion.from_nanogpt("out/ckpt.pt")
            case_counts["pickles refused"] += 1
    assert not Path("executed").exists()
    assert not Path("runs").exists()


NOT_A_CHECKPOINT = "is not a checkpoint of nanoGPT's train.py"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {}}, NOT_A_CHECKPOINT),
        ({"model_args": None}, NOT_A_CHECKPOINT),
        ({"config": []}, NOT_A_CHECKPOINT),
        ({"model": {}}, "do not fit the network that its config describes"),
        ({"optimizer": {"state": {0: {}}}}, NOT_A_CHECKPOINT),
        ({"optimizer": None}, NOT_A_CHECKPOINT),
        ({"model": {"transformer.wpe.weight": torch.tensor(math.nan)}}, "some of its numbers are not finite"),
        ({"model": {"transformer.wpe.weight": torch.tensor(1e300, dtype=torch.float64)}}, "are not finite"),
        ({"iter_num": "three"}, NOT_A_CHECKPOINT),
        ({"iter_num": math.inf}, NOT_A_CHECKPOINT),
        ({"iter_num": -5}, NOT_A_CHECKPOINT),
        ({"best_val_loss": "low"}, NOT_A_CHECKPOINT),
        ({"best_val_loss": -1e40}, NOT_A_CHECKPOINT),
        ({"model_args": {**SHAPE, "vocab_size": 7}}, "has a vocabulary of 7 tokens"),
        ({"model_args": {**SHAPE, "n_layer": 10**9, "vocab_size": 34}}, "`n_layer=1000000000` is an invalid value"),
    ],
)
def test_an_invalid_nanogpt_checkpoint_is_refused(nanogpt_ckpt, changes, message):
    save_ckpt(nanogpt_ckpt[0], **changes)
    with pytest.raises(ng.UserError, match=message):
        conversion.from_nanogpt("out/ckpt.pt")
    assert not Path("runs").exists()


def test_optimizer_state_of_another_shape_is_refused(nanogpt_ckpt):
    content, *_ = nanogpt_ckpt
    states = {number: dict(state) for number, state in content["optimizer"]["state"].items()}
    states[0]["exp_avg"] = states[0]["exp_avg"].flatten()
    save_ckpt(content, optimizer={**content["optimizer"], "state": states})
    with pytest.raises(ng.UserError, match="the optimizer state of .* has another shape than the parameter"):
        conversion.from_nanogpt("out/ckpt.pt")
    assert not Path("runs").exists()


def test_a_file_that_claims_more_memory_than_its_size_is_refused(nanogpt_ckpt):
    """A tensor in a file may be one number, repeated as often as it says."""
    content, *_ = nanogpt_ckpt
    vocab_size = content["model_args"]["vocab_size"]
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in content["model"].items()}
    wide = {name: torch.zeros(()).expand([3200 if n == 16 else n for n in t.shape]) for name, t in weights.items()}
    save_ckpt(content, model=wide, model_args={**SHAPE, "n_embd": 3200, "vocab_size": vocab_size})
    with pytest.raises(ng.UserError, match="more elements than the file holds"):
        conversion.from_nanogpt("out/ckpt.pt")
    slots = {n: {"exp_avg": torch.zeros(()).expand(10**9)} for n in range(3)}
    save_ckpt(content, optimizer={"state": slots})
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


@pytest.mark.parametrize("options", [{"activation": "relu2"}, {"logit_softcap": 30.0}])
def test_a_network_with_an_unknown_option_is_refused(nanogpt_ckpt, options):
    content, *_ = nanogpt_ckpt
    save_ckpt(content, model_args={**content["model_args"], **options})
    with pytest.raises(ng.UserError, match=f"its network has the unknown option '{next(iter(options))}'"):
        conversion.from_nanogpt("out/ckpt.pt")
    assert not Path("runs").exists()


def test_a_file_in_the_format_before_zip_files_is_refused(nanogpt_ckpt):
    """Found by fuzzing: in that format, 7 bytes may claim a text of 2 GiB, for which memory was allocated."""
    content, *_ = nanogpt_ckpt
    torch.save(content, "out/ckpt.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ng.UserError, match="give a ckpt.pt of nanoGPT's train.py"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_import_works_without_optimizer_state_and_without_min_lr(nanogpt_ckpt):
    content, *_ = nanogpt_ckpt
    del content["optimizer"], content["config"]["min_lr"]
    save_ckpt(content)
    run = conversion.from_nanogpt("out")  # the folder will do too
    assert ng.train("bottles.txt", out_dir=run.out_dir, init_from="resume", max_iters=5, device="cpu")


def test_an_untied_output_matrix_is_refused(nanogpt_ckpt):
    content, *_ = nanogpt_ckpt
    other = content["model"]["lm_head.weight"] + 1
    save_ckpt(content, model={**content["model"], "lm_head.weight": other})
    with pytest.raises(ng.UserError, match="its output matrix differs from its token embedding"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_min_lr_above_learning_rate_is_accepted_without_decay(nanogpt_ckpt):
    """nanoGPT's own finetuning has it so."""
    content, *_ = nanogpt_ckpt
    save_ckpt(content, config={**content["config"], "decay_lr": False, "min_lr": 1.0})
    run = conversion.from_nanogpt("out/ckpt.pt")
    config = read_checkpoint(run.out_dir / "last.safetensors").metadata.config
    assert (config.learning_rate, config.min_lr) == (0.01, 0.01)


def test_min_lr_above_learning_rate_with_decay_becomes_constant_with_a_warning(nanogpt_ckpt):
    content, *_ = nanogpt_ckpt
    save_ckpt(content, config={**content["config"], "min_lr": 1.0})
    with pytest.warns(UserWarning, match="its learning rate would rise to min_lr; here it stays constant"):
        run = conversion.from_nanogpt("out/ckpt.pt")
    config = read_checkpoint(run.out_dir / "last.safetensors").metadata.config
    assert (config.learning_rate, config.min_lr) == (0.01, 0.01)


def test_out_of_memory_is_not_reported_as_a_damaged_file(nanogpt_ckpt, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        conversion.from_nanogpt("out/ckpt.pt")


def test_a_damaged_or_missing_ckpt_pt_is_refused(nanogpt_ckpt):
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
