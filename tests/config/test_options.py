"""Options: defaults, rules, parsing, and the messages for invalid values."""

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lite.config import options
from nanogpt_lite.config.options import (
    LoadConfig,
    NetworkConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from nanogpt_lite.config.schema import ANY, Options, Role, parse_values
from nanogpt_lite.errors import UserError

KINDS: list[type[Options]] = [
    kind for kind in vars(options).values() if isinstance(kind, type) and issubclass(kind, Options)
]
FIELDS = {field.name: field for kind in KINDS for field in dataclasses.fields(kind)}
KIND_OF: dict[str, type[Options]] = {name: kind for kind in KINDS for name in kind.names()}
KIND_OF |= dict.fromkeys(RunConfig.names(), RunConfig)
UNCONSTRAINED = {"min_lr": 0, "n_head": 1}  # with these, no rule about two options applies
WRONG_TYPES: dict[type, list[object]] = {
    int: [True, 1.0, "1", None, math.nan],
    float: [True, "1", None, math.nan, math.inf, -math.inf],
    bool: [1, 0, 0.0, "True", None],
    str: [1, True, None, b"cpu", ["cpu"]],
}
BOUNDARIES: dict[str, tuple[list[Any], list[Any]]] = {  # name: (last valid values, first invalid values)
    "top": ([1, 1000], [0, 1001]),
    "host": (["a"], [""]),
    "port": ([0, 65535], [-1, 65536]),
    "answer_seconds": ([0], [-1e-9]),
    "remote": (["", "https://a.org"], ["http://a.org", "a.org"]),
    "max_waiting": ([1, 10_000], [0, 10_001]),
    "chat_template": (["", "{content}"], ["{role}: "]),
    "seed": ([0, 2**63 - 1], [-1, 2**63]),
    "threads": ([0], [-1]),
    "block_size": ([1], [0]),
    "n_layer": ([1], [0, -1]),
    "n_head": ([1], [0]),
    "n_embd": ([1], [0]),
    "ngram_dropout": ([0, 0.99], [-0.1, 1]),
    "dropout": ([0, math.nextafter(1, 0)], [1, -1e-9]),
    "max_iters": ([1], [0]),
    "batch_size": ([1], [0]),
    "gradient_accumulation_steps": ([1], [0]),
    "learning_rate": ([5e-324], [0, -1e-3]),
    "min_lr": ([0], [-1e-9]),
    "warmup_iters": ([0], [-1]),
    "lr_decay_iters": ([0], [-1]),
    "weight_decay": ([0], [-0.1]),
    "beta1": ([0, math.nextafter(1, 0)], [1, -0.1]),
    "beta2": ([0, math.nextafter(1, 0)], [1, -0.1]),
    "grad_clip": ([0], [-1]),
    "eval_interval": ([1], [0]),
    "eval_iters": ([0], [-1]),
    "eval_tokens": ([0, 10**12], [-1, 10**12 + 1]),
    "log_interval": ([1], [0]),
    "sample_interval": ([0], [-1]),
    "keep_every": ([0], [-1]),
    "keep_early": ([0, 1e6], [-1e-9, 1e6 + 1]),
    "patience": ([0], [-1]),
    "target_loss": ([0], [-0.1]),
    "max_seconds": ([0], [-1]),
    "minutes": ([0, 525_600], [-1, 525_601]),
    "num_samples": ([1], [0]),
    "max_new_tokens": ([1], [0]),
    "temperature": ([0], [-0.1]),
    "top_k": ([0], [-1]),
    "top_p": ([0, 1], [-0.1, 1.1]),
    "min_p": ([0, 1], [-0.1, 1.1]),
    "device": (["cpu", "cuda:1"], [""]),
    "dtype": (["auto", "float32", "bfloat16", "float16"], ["", "fp16", "Float32"]),
    "tokenizer": (["auto", *options.TOKENIZERS], ["bpe", "bpe-255"]),
    "dataset": (["x"], [""]),
    "wandb_project": (["x"], [""]),
    "optimizer": (list(options.OPTIMIZERS), ["no"]),
    "muon_learning_rate": ([0.1], [0]),
    "muon_momentum": ([0, 0.99], [-0.1, 1]),
    "cooldown": ([0, 1], [-0.1, 1.1]),
    "position": (["learned", "rotary"], ["rope"]),
    "norm": (["layer", "rms"], ["none"]),
    "activation": (["gelu", "relu2"], ["relu"]),
    "rope_theta": ([0, 1, 1e12], [-1, 0.5, 1e13]),
    "ngram": ([1], [0]),
    "ngram_rows": ([1], [0]),
    "batch_sampling": (["random", "spread"], ["even", ""]),
    "ngram_expert": ([0, 16], [-1, 17]),
    "ngram_expert_weight": ([0, 0.99], [-0.1, 1]),
    "init_from": (["x"], [""]),
    "checkpoint": (["x"], [""]),
    "start": (["\n"], [""]),
}


def refusal(name: str, value: object) -> str:
    with pytest.raises(UserError) as caught:
        KIND_OF[name].from_dict({**_unconstrained(name), name: value})
    return str(caught.value)


def _unconstrained(name: str) -> dict[str, Any]:
    return UNCONSTRAINED if KIND_OF[name] is RunConfig else {}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_option_has_type_default_and_help(field):
    assert field.type in (int, float, bool, str)
    assert type(field.default) is field.type
    assert field.metadata["help"].strip()
    assert field.metadata["help"].isascii()
    assert isinstance(field.metadata["role"], Role)


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_help_names_every_choice(field):
    for choice in field.metadata["rule"].choices:
        assert re.search(rf"\b{choice}\b", field.metadata["help"])


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_pass_their_own_checks(kind):
    defaults = kind()
    assert kind.from_dict(dataclasses.asdict(defaults)) == defaults
    assert kind.names() == list(dataclasses.asdict(defaults))


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_value_of_wrong_type_is_refused(field):
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[field.type]
    for value in WRONG_TYPES[field.type]:
        message = refusal(field.name, value)
        assert message.startswith(f"`{field.name}={value!r}` ")
        assert f"must be {words}" in message
        assert message.endswith(field.metadata["help"])


def test_every_rule_has_boundary_cases():
    assert set(BOUNDARIES) == {name for name, field in FIELDS.items() if field.metadata["rule"] is not ANY}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_rules_at_their_boundaries(name):
    valid, invalid = BOUNDARIES[name]
    for value in valid:
        assert getattr(KIND_OF[name].from_dict({**_unconstrained(name), name: value}), name) == value
        assert parse_values(KIND_OF[name], {name: str(value)}) == {name: value}
    for value in invalid:
        assert f"`{name}={value!r}` is an invalid value" in refusal(name, value)
        with pytest.raises(UserError, match=f"^`{name}="):
            parse_values(KIND_OF[name], {name: str(value)})


@pytest.mark.parametrize("value", [1, 1.0])
def test_whole_number_is_accepted_for_a_float(value):
    assert TrainConfig(learning_rate=value).learning_rate == 1
    assert parse_values(TrainConfig, {"learning_rate": str(value)}) == {"learning_rate": 1.0}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("n_layers", "did you mean n_layer?"),
        ("batchsize", "did you mean batch_size?"),
        ("lr_decay_iter", "did you mean lr_decay_iters?"),
        ("xyzzy", "use one of "),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda name: TrainConfig.from_dict({"max_iters": 1, name: 4}),
        lambda name: TrainConfig().replace({name: 4}),
        lambda name: parse_values(TrainConfig, {name: "4"}),
    ],
    ids=["from_dict", "replace", "parse"],
)
def test_unknown_option_is_refused_with_the_nearest_name(read, name, remedy):
    with pytest.raises(UserError, match=f"unknown option '{name}'") as caught:
        read(name)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("true", True), ("TRUE", True), ("1", True), ("False", False), ("false", False), ("0", False)],
)
def test_boolean_texts(text, value):
    assert parse_values(TrainConfig, {"compile": text})["compile"] is value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("compile", text) for text in ("", "yes", "2", "None", "T", "1.0")],
        *[("n_layer", text) for text in ("", "1.5", "1e3", "four", "0x10", "nan")],
        *[("dropout", text) for text in ("", "a", "0,1", "1/2")],
    ],
)
def test_text_that_cannot_be_parsed_is_refused(name, text):
    with pytest.raises(UserError) as caught:
        parse_values(TrainConfig, {name: text})
    assert str(caught.value).startswith(f"`{name}={text!r}` is an invalid value")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_text_of_a_number_that_is_not_finite_is_refused(text):
    with pytest.raises(UserError, match="learning_rate="):
        parse_values(TrainConfig, {"learning_rate": text})


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.floats(0, 1, exclude_max=True), st.text(min_size=1))
def test_parse_values_inverts_str_and_repr(whole, number, text):
    texts = {"seed": str(whole), "dropout": repr(number), "start": text}
    assert parse_values(RunConfig, texts) == {"seed": whole, "dropout": number, "start": text}


def test_parse_values_inverts_str_of_every_default():
    read = parse_values(RunConfig, {field.name: str(field.default) for field in dataclasses.fields(RunConfig)})
    assert RunConfig.from_dict(read) == RunConfig()
    assert {name: type(value) for name, value in read.items()} == {
        f.name: f.type for f in dataclasses.fields(RunConfig)
    }


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_n_embd_has_to_be_a_multiple_of_n_head(n_embd, n_head):
    if n_embd % n_head == 0:
        NetworkConfig(n_embd=n_embd, n_head=n_head)
        return
    with pytest.raises(UserError, match=f"`n_embd={n_embd}` is not a multiple of `n_head={n_head}`") as caught:
        NetworkConfig(n_embd=n_embd, n_head=n_head)
    tried = int(str(caught.value).rstrip("`").rsplit("=", 1)[1])
    assert tried == min(width for width in range(n_embd, n_embd + n_head) if width % n_head == 0)


def test_advised_n_embd_is_valid_with_rotary_position_too():
    with pytest.raises(UserError, match="`n_embd=128` is not a multiple of `n_head=3`.*try `n_embd=132`"):
        NetworkConfig(n_embd=128, n_head=3, position="rotary")
    NetworkConfig(n_embd=132, n_head=3, position="rotary")


def test_context_too_large_for_memory_is_refused():
    NetworkConfig(block_size=2**17, n_embd=1024, n_head=1)
    with pytest.raises(UserError, match="too large together: .* try `block_size=2048`"):
        NetworkConfig(block_size=2**20, n_embd=2**16, n_head=1, position="rotary")
    NetworkConfig(block_size=2048, n_embd=2**16, n_head=1)


def test_min_lr_above_learning_rate_is_refused():
    with pytest.raises(UserError, match=r"`min_lr=0\.0001` is above `learning_rate=5e-05`") as caught:
        TrainConfig(learning_rate=5e-5)
    assert "5e-06" in str(caught.value)
    assert TrainConfig(learning_rate=5e-5, decay_lr=False).min_lr == 1e-4  # min_lr is not used then
    assert TrainConfig(learning_rate=1e-4).min_lr == 1e-4


def test_subset_replace_and_stored():
    whole = RunConfig(n_layer=2, top_k=7, device="cpu", max_seconds=3)
    assert whole.subset(TrainConfig) == TrainConfig(n_layer=2, device="cpu", max_seconds=3)
    assert whole.subset(SampleConfig) == SampleConfig(top_k=7, device="cpu")
    assert whole.replace({"n_layer": 3}) == RunConfig(n_layer=3, top_k=7, device="cpu", max_seconds=3)
    with pytest.raises(UserError, match="n_layer=0"):
        whole.replace({"n_layer": 0})
    trackers = {"tensorboard", "wandb_log", "wandb_project", "wandb_run_name"}
    assert set(TrainConfig.names()) - set(TrainConfig().stored()) == {
        "out_dir",
        "device",
        "keep_early",
        "max_seconds",
        "minutes",
        "trace",
        *trackers,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.n_layer = 4


def test_options_of_nanogpt_exist():
    train = """dataset out_dir max_iters eval_interval eval_iters log_interval batch_size block_size
        gradient_accumulation_steps n_layer n_head n_embd dropout bias learning_rate min_lr warmup_iters
        lr_decay_iters decay_lr weight_decay beta1 beta2 grad_clip device dtype compile seed init_from"""
    sample = "start num_samples max_new_tokens temperature top_k seed device dtype"
    assert set(train.split()) <= set(TrainConfig.names())
    assert set(sample.split()) <= set(SampleConfig.names())
    assert {"device", "dtype", "checkpoint"} <= set(LoadConfig.names())


@pytest.mark.parametrize(
    "values",
    [{"dtype": "a" * 5000}, {"max_iters": {"model": np.zeros((9, 99))}}, {"n_layer": ["\n"] * 999}, {"n" * 5000: 1}],
    ids=["text", "array", "list", "name"],
)
def test_message_about_an_invalid_value_is_one_short_line(values):
    """Found by fuzzing: a config in a file may hold anything, such as all weights under the name of an option."""
    with pytest.raises(UserError, match="invalid value|unknown option") as caught:
        TrainConfig.from_dict(values)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n_embd", "n_head"), [(6, 2), (15, 3), (1, 1)])
def test_rotary_position_needs_an_even_head_size(n_embd, n_head):
    NetworkConfig(n_embd=n_embd, n_head=n_head)
    with pytest.raises(UserError, match=f"heads of an odd size.* try `n_embd={2 * n_embd}`"):
        NetworkConfig(n_embd=n_embd, n_head=n_head, position="rotary")
    NetworkConfig(n_embd=2 * n_embd, n_head=n_head, position="rotary")
