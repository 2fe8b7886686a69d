"""A copy that shares tensors."""

from random_gpt import SMALL, VOCAB, random_gpt

from nanogpt_lite.model.shallow_copy import copy_modules


def test_a_copy_shares_tensors_and_has_its_own_mode():
    model = random_gpt()
    copied = copy_modules(model)
    assert [id(parameter) for parameter in copied.parameters()] == [id(parameter) for parameter in model.parameters()]
    copied.train()
    assert not any(module.training for module in model.modules())
    assert copied.lm_head.weight.shape == (VOCAB, SMALL.n_embd)
