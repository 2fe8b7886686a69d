"""What samples of a run copy from its train split, beside what other text of the same kind has in common with it."""

from statistics import fmean
from typing import TypedDict

import numpy as np
import torch

from nanogpt_lite.api.inference import default_prompt
from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.data import verification
from nanogpt_lite.data.batching import Tokens
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.diagnosis.copies import longest_copies
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.tokenizers.base import Ids, Tokenizer

TEXTS, TEXT_TOKENS = 10, 500  # of each kind, and their length


class Copies(TypedDict):
    """The longest spans of texts that the train split has as well."""

    texts: int
    mean_characters: float  # of the longest span of each text
    longest_characters: int  # of all texts
    longest: str


def measure_copies(model: GPT, tokenizer: Tokenizer, data: Dataset, *, seed: int) -> dict[str, Copies]:
    """The longest spans of texts that the train split of `data` has as well, by the kind of the texts.

    "samples"; "network_samples", without the n-gram expert, if there is one; and "val": parts of the val split, which
    copies nothing. Of a val split that is shorter than 10 times 500 tokens, there are fewer parts, or none.
    """
    with verification.open_verified(data) as (train, val):
        texts = {"samples": _generate(model, tokenizer, seed)}
        if model.expert is not None:
            texts["network_samples"] = _generate(model.without_expert(), tokenizer, seed)
        if parts := _read_parts(val):
            texts["val"] = parts
        all_texts = [ids for of_kind in texts.values() for ids in of_kind]
        spans = iter(longest_copies(all_texts, train))  # together, because the train tokens are hashed for each call
        return {kind: _describe([next(spans) for _ in of_kind], tokenizer) for kind, of_kind in texts.items()}


def _generate(model: GPT, tokenizer: Tokenizer, seed: int) -> list[Ids]:
    """Samples with the default options of sampling, but the seed."""
    prompt = torch.from_numpy(tokenizer.encode(default_prompt(tokenizer)).astype(np.int64))
    config = SampleConfig(max_new_tokens=TEXT_TOKENS, seed=seed)
    return list(torch.stack(list(generate(model, prompt.expand(TEXTS, -1), config)), dim=1).numpy())


def _read_parts(val: Tokens) -> list[Ids]:
    """Parts of a val split that do not overlap, evenly spread."""
    number = min(TEXTS, len(val) // TEXT_TOKENS)
    starts = [index * len(val) // number for index in range(number)]
    return [val[start : start + TEXT_TOKENS] for start in starts]


def _describe(spans: list[Ids], tokenizer: Tokenizer) -> Copies:
    copied = [tokenizer.decode(span) for span in spans]
    longest = max(copied, key=len)
    return Copies(
        texts=len(copied),
        mean_characters=fmean(map(len, copied)),
        longest_characters=len(longest),
        longest=longest,
    )
