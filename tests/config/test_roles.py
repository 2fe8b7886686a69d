"""What is marked on an option: its role, and its value in a stored config without it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint, write_tensors_and_json
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Options, Role, bits_option, call_option, network_option
from nanogpt_lite.errors import UserError
from nanogpt_lite.interop import huggingface, nanogpt_export
from nanogpt_lite.interop.export_checks import unsupported_options
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.ngrams.ngram_counts import count_ngrams
from nanogpt_lite.tokenizers.char import CharTokenizer

GOLDEN_RUN = Path(__file__).parents[1] / "golden" / "v0.1" / "runs" / "plain"
BASE = NetworkConfig(
    block_size=8,
    n_layer=1,
    n_head=2,
    n_embd=8,
    dropout=0.0,
    position="rotary",
    ngram=2,
    ngram_rows=16,
    ngram_expert=1,
    tied=False,
)
OTHER_VALUES = {  # another value of each option of the network, with which the weights may still fit
    "block_size": 9,
    "n_layer": 2,
    "n_head": 1,
    "n_embd": 16,
    "bias": True,
    "position": "learned",
    "rope_theta": 10_000.0,
    "norm": "rms",
    "qk_norm": True,
    "activation": "relu2",
    "tied": True,
    "ngram": 3,
    "ngram_rows": 32,
    "ngram_expert": 2,
    "ngram_expert_weight": 0.7,
    "batch_sampling": "spread",
    "dropout": 0.5,
    "fast_dropout": False,
    "checkpoint_activations": True,
    "zero_init": True,
    "ngram_dropout": 0.5,
}


def logits(config: NetworkConfig) -> dict[str, torch.Tensor]:
    """The logits and the weights of a network in evaluation mode, whose weights depend on their shapes alone."""
    model = GPT(config, vocab_size=11).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        assert model.expert is not None
        model.expert.set_counts(count_ngrams(torch.arange(64) % 7 % 4, 11, config.ngram_expert))
        return {"logits": model(torch.arange(8)[None])[0], **dict(model.named_parameters())}


@pytest.mark.parametrize("name", NetworkConfig.names())
def test_exactly_the_options_of_the_network_change_its_logits_or_its_weights(name):
    # with rotary positions and a stored base, a longer context changes neither; with learned ones, the weights
    base = BASE.replace({"position": "learned"}) if name == "block_size" else BASE
    before, after = logits(base), logits(base.replace({name: OTHER_VALUES[name]}))
    is_same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert is_same == (name not in NetworkConfig.names_by_role(Role.NETWORK))


def test_each_option_that_is_newer_than_version_0_1_says_what_its_absence_means():
    stored_by_0_1 = json.loads((GOLDEN_RUN / "config.json").read_text(encoding="utf-8"))["config"]
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    newer = [name for name in TrainConfig().stored() if name not in stored_by_0_1]
    assert newer
    assert all(fields[name].metadata["absent"] is not None for name in newer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored(Options):
    """Options of two versions: `width` is of the first."""

    width: int = network_option(4, "width")
    depth: int = network_option(2, "depth", absent=1)
    threads: int = bits_option(3, "threads")
    path: str = call_option("", "path")


def test_missing_option_means_the_behaviour_of_the_version_that_wrote_the_file():
    assert Stored.from_stored({"width": 8, "threads": 1}) == Stored(width=8, depth=1, threads=1)
    assert Stored.from_stored(Stored(path="x").stored()) == Stored()


def test_missing_option_of_the_first_version_and_an_unknown_option_are_refused():
    with pytest.raises(UserError, match="no value for the options width, threads"):
        Stored.from_stored({})
    with pytest.raises(UserError, match="unknown option 'height'"):
        Stored.from_stored({"width": 8, "threads": 1, "height": 2})


def test_roles_divide_the_options():
    assert Stored.names_by_role(Role.NETWORK) == ["width", "depth"]
    assert Stored.names_by_role(Role.BITS, Role.CALL) == ["threads", "path"]
    assert Stored().stored() == {"width": 4, "depth": 2, "threads": 3}


def test_option_unknown_to_the_exporters_is_refused_by_resuming_and_by_each_exporter(tmp_path):
    package = Path(ng.__file__).parent
    shutil.copytree(package, tmp_path / "nanogpt_lite", ignore=shutil.ignore_patterns("__pycache__"))
    options = tmp_path / "nanogpt_lite/config/options.py"
    text = options.read_text(encoding="utf-8")
    marker = "class NetworkConfig(Options):\n"
    docstring_end = text.index('"""\n', text.index(marker)) + 4
    added = '    twist: int = network_option(0, "an option that no other module knows")\n'
    options.write_text(text[:docstring_end] + added + text[docstring_end:], encoding="utf-8")
    (tmp_path / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 9, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py", json.dumps(TINY)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    exports = [name for name in ng.__all__ if name.startswith("to_")]
    assert answers["default"] == ["ok", *["ok"] * len(exports)]
    assert len(answers["twisted"]) == 1 + len(exports) >= 3
    for answer in answers["twisted"]:
        assert "twist=1" in answer
    for answer in answers["other"]:
        assert "twist=1 (the checkpoint has 0)" in answer


SCRIPT = """
import json, sys
import nanogpt_lite as ng

def answer(call):
    try:
        call()
        return "ok"
    except ng.UserError as error:
        return str(error)

tiny = {**json.loads(sys.argv[1]), "preset": "cpu", "max_iters": 2, "dtype": "float32"}
answers = {}
for name, twist in (("default", 0), ("twisted", 1)):
    run = ng.train("text.txt", **tiny, out_dir=f"runs/{name}", twist=twist).out_dir
    exports = [getattr(ng, export) for export in ng.__all__ if export.startswith("to_")]
    answers[name] = [answer(lambda: export(run, f"{export.__name__}-{name}")) for export in exports]
    # weights alone keep their whole config, so nothing is lost
    answers[name].append("ok" if twist == 0 else f"twist={ng.load(ng.export_weights(run))[0].config.twist}")
answers["other"] = [
    answer(lambda: ng.train(init_from="resume", out_dir="runs/default", twist=1)),
    answer(lambda: ng.train("text.txt", init_from="runs/default", **{**tiny, "twist": 1})),
]
print(json.dumps(answers))
"""


@pytest.mark.parametrize(("to", "known"), [("nanogpt", ()), ("huggingface", ("tied",))])
def test_each_option_that_the_other_program_lacks_is_refused_by_its_exporter(to, known):
    """Of the options that nanoGPT's network lacks, only `known` are in a GPT-2 of transformers."""
    check = nanogpt_export.require_nanogpt_compatible if to == "nanogpt" else huggingface.require_gpt2_compatible
    arguments = (CharTokenizer("ab"), Path("a")) if to == "nanogpt" else (Path("a"),)
    plain = TrainConfig(n_layer=1, n_head=1, n_embd=8)
    check(plain, *arguments)
    shared = ("block_size", "n_layer", "n_head", "n_embd", "bias")  # by all three programs
    # alone
    without_effect = {"rope_theta": "position", "ngram_rows": "ngram", "ngram_expert_weight": "ngram_expert"}
    lacking = {*NetworkConfig.names_by_role(Role.NETWORK)} - {*shared, *known, *without_effect}
    assert {"position", "norm", "activation"} <= lacking
    for name in (*shared, *known, *without_effect):
        check(plain.replace({name: OTHER_VALUES[name]}), *arguments)
    for name in lacking:
        values = {**OTHER_VALUES, "position": "rotary", "tied": False}
        with pytest.raises(ng.UserError, match=f"with {name}={values[name]};"):
            check(plain.replace({name: values[name]}), *arguments)
    for name, other in without_effect.items():
        supported = [name for name in NetworkConfig.names() if name not in without_effect]
        config = plain.replace({"position": "rotary", "ngram": 2, **OTHER_VALUES, other: OTHER_VALUES[other]})
        assert f"{name}={OTHER_VALUES[name]}" in unsupported_options(config, supported=supported)


def test_stored_config_of_a_newer_version_is_refused(trained):
    path = trained.out_dir / "last.safetensors"
    saved = read_checkpoint(path)
    content = saved.metadata.to_json()
    write_tensors_and_json(path, saved.tensors, {**content, "config": {**content["config"], "twist": 0}})
    for call in (
        lambda: ng.load(trained, checkpoint="last"),
        lambda: ng.train(init_from="resume", out_dir=trained.out_dir),
    ):
        with pytest.raises(ng.UserError, match="unknown option 'twist'"):
            call()
