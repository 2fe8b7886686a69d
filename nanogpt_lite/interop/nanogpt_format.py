"""What import from nanoGPT and export to nanoGPT share: constants of its train.py, and the order of its parameters."""

from nanogpt_lite.config.presets import GPT2_VOCAB_SIZE
from nanogpt_lite.model.gpt import GPT

MODEL_ARGS = ("n_layer", "n_head", "n_embd", "block_size", "bias")  # the keys of model_args, besides vocab_size
INITIAL_LOSS = 1e9  # best_val_loss before the first evaluation
VOCAB_SIZES = (GPT2_VOCAB_SIZE, 50304)  # without a meta.pkl: GPT-2's, or the next multiple of 64, nanoGPT's default


def optimizer_parameter_names(model: GPT) -> list[str]:
    """The names of the parameters in the order in which nanoGPT's optimizer numbers them."""
    named = dict(model.named_parameters())
    return [n for n, p in named.items() if p.dim() >= 2] + [n for n, p in named.items() if p.dim() < 2]
