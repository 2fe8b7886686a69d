"""Small networks with random weights, and random token ids for them."""

import torch

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.ngrams.ngram_counts import count_ngrams

VOCAB = 29
SMALL = NetworkConfig(block_size=16, n_layer=3, n_head=2, n_embd=32, bias=True, dropout=0.0)
# All options that GPT-2 does not have. Of 29**2 and more n-grams in 50 buckets, bigrams share buckets too.
MODERN = {"position": "rotary", "norm": "rms", "qk_norm": True, "activation": "relu2", "tied": False}
MODERN |= {"ngram": 4, "ngram_rows": 50}
# GPT-2, all of these options together, and each one alone.
EXPERT = {"ngram_expert": 4}
VARIANTS = [{}, MODERN, *({name: value} for name, value in MODERN.items() if name != "ngram_rows"), EXPERT]


def random_gpt(config=SMALL, vocab_size=VOCAB, *, std=0.2, seed=0):
    """Return a GPT whose parameters are all random: zero biases and unit scales would hide mistakes.

    An n-gram expert has counted a random text, of a few tokens so that n-grams occur again.
    """
    torch.manual_seed(seed)
    model = GPT(config, vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    if model.expert is not None:
        text = random_ids(1, 500, vocab_size=min(vocab_size, 4), seed=seed + 2)[0]
        model.expert.set_counts(count_ngrams(text, vocab_size, config.ngram_expert))
    return model.eval()


def random_variant(options):
    """Return a random GPT of the SMALL config with some options replaced."""
    return random_gpt(SMALL.replace(options))


def random_ids(rows, length, *, vocab_size=VOCAB, seed=1):
    """Return token ids (rows, length)."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
