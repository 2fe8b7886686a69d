"""Presets: named sets of option values, and the config that a preset and explicit options make together.

The networks of GPT-2's weights are here too. The options themselves are in `options`. A training with a config file or
initial weights: see `api.setup`.
"""

from collections.abc import Mapping

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Value, require_known

# Changes to GPT-2 from later work. benchmarks/results/ablation_*.md have the effect of each on an earlier recipe; that
# of `batch_sampling` and `ngram_expert` is in docs/benchmarks.md. On a GPU none was measured.
_MODERN: dict[str, Value] = {
    "position": "rotary",
    "qk_norm": True,
    "activation": "relu2",
    "tied": False,
    "zero_init": True,
    "optimizer": "muon",
    "muon_learning_rate": 0.015,
    "learning_rate": 0.015,
    "min_lr": 0.00015,
    "warmup_iters": 5,
    "cooldown": 0.9,
    "beta1": 0.8,
    "beta2": 0.95,
    "grad_clip": 0.0,
    "batch_sampling": "spread",
    "ngram_expert": 8,
}

# The defaults of the options are nanoGPT's config/train_shakespeare_char.py.
PRESETS: dict[str, dict[str, Value]] = {
    "shakespeare_char": {},
    # the table in the Modal tutorial: the same network, a shorter run
    "tutorial": {"max_iters": 1000, "learning_rate": 1e-3},
    # nanoGPT's README, "I only have a macbook"; half as many evaluations, as each covers the whole val split
    "cpu": {
        "block_size": 64,
        "batch_size": 12,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "dropout": 0.0,
        "max_iters": 2000,
        "eval_interval": 500,
        "dtype": "float32",
    },
    # nanoGPT's config/finetune_shakespeare.py: starts from the weights of GPT-2
    "finetune": {
        "batch_size": 1,
        "gradient_accumulation_steps": 32,
        "dropout": 0.0,
        "learning_rate": 3e-5,
        "min_lr": 3e-6,
        "beta2": 0.95,
        "decay_lr": False,
        "max_iters": 20,
        "eval_interval": 5,
    },
    # about as long as `cpu` or shorter; the numbers are those for tiny Shakespeare in float32: for another text, and in
    # bfloat16, `recipe` has others
    "modern-cpu": {
        **_MODERN,
        "block_size": 256,
        "batch_size": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 128,
        "dropout": 0.0,
        "ngram": 4,
        "ngram_dropout": 0.4,
        "weight_decay": 0.2,
        "max_iters": 429,
        "eval_interval": 108,
        "patience": 2,
    },
    # network size and batch size of shakespeare_char; not run on a GPU yet; see `recipe` for other texts
    "modern": {
        **_MODERN,
        "norm": "rms",
        "weight_decay": 0.1,
        "max_iters": 2000,
        "patience": 5,
    },
}
# The networks of the weights that `init_from` names: Radford et al. 2019, table 2, and each model's config.json.
_GPT2: dict[str, Value] = {"block_size": 1024, "bias": True, "activation": "gelu_tanh"}
GPT2_NETWORKS: dict[str, dict[str, Value]] = {
    "gpt2": {**_GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {**_GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {**_GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {**_GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}
GPT2_VOCAB_SIZE = 50257
TUTORIAL_PRESET = "tutorial"  # on Modal, the default for the text of the tutorial


def get_preset(name: str) -> dict[str, Value]:
    """The values of a preset. `UserError` on an unknown name."""
    require_known([name], PRESETS, "preset")
    return PRESETS[name]


def config_with_preset(preset: str | None, options: Mapping[str, Value]) -> TrainConfig:
    """The defaults, replaced by the values of the preset, replaced by `options`. `UserError` on a mistake in them.

    >>> config = config_with_preset("cpu", {"n_layer": 2})
    >>> config.n_layer, config.n_head, config.beta1  # of the options, of the preset, a default
    (2, 4, 0.9)
    """
    return TrainConfig.from_dict({**(get_preset(preset) if preset else {}), **options})
