"""Random numbers as a function of integers."""

import torch

from nanogpt_lite.device import seeding

CPU = torch.device("cpu")


def test_seeded_numbers_depend_on_the_parts_alone():
    def draw(*parts):
        with seeding.seeded(CPU, *parts):
            return tuple(torch.rand(4).tolist())

    outside = torch.get_rng_state()
    numbers = {parts: draw(*parts) for parts in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 23), (12, 3)]}
    assert len(set(numbers.values())) == len(numbers)
    assert all(draw(*parts) == drawn for parts, drawn in numbers.items())
    assert torch.equal(torch.get_rng_state(), outside)
