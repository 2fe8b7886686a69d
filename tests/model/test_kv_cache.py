"""Logits with a cache against logits without one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_gpt import MODERN, VARIANTS, random_ids, random_variant

from nanogpt_lite.model.kv_cache import KVCache


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: ",".join(options))
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda lengths: sum(lengths) <= 16))
def test_logits_with_cache_equal_those_without(options, lengths):
    model = random_variant(options)
    x = random_ids(3, sum(lengths))
    with torch.inference_mode():
        expected = model(x)[0]
        cache = KVCache(model, 3)
        logits = [model(part, cache=cache)[0] for part in x.split(lengths, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-5)
    assert cache.length == sum(lengths)


@pytest.mark.parametrize("options", [{}, MODERN], ids=["nanoGPT", "modern"])
def test_logits_with_device_position_equal_those_without_cache(options):
    model = random_variant(options)
    x, position = random_ids(3, 16), torch.empty(1, dtype=torch.int64)
    with torch.inference_mode():
        expected = model(x)[0]
        cache = KVCache(model, 3)
        for prompt_length in (5, 9):  # the second time after `clear`
            cache.clear()
            model(x[:, :prompt_length], cache=cache)
            cache.use_device_position(position)
            logits = [model(x[:, i : i + 1], cache=cache)[0] for i in range(prompt_length, 16)]
            torch.testing.assert_close(torch.cat(logits, dim=1), expected[:, prompt_length:], rtol=1e-4, atol=1e-5)
            assert cache.length == position.item() == 16
