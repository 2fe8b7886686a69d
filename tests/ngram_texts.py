"""Texts whose n-grams are counted: the size of the vocabulary, and the tokens."""

import numpy as np

TEXTS = {
    "random": (3, np.random.default_rng(0).integers(0, 3, 300)),
    "many tokens": (40, np.random.default_rng(1).integers(0, 40, 300)),
    "repeated": (5, np.arange(200) % 5),
    "sorted": (4, np.sort(np.random.default_rng(2).integers(0, 4, 200))),
    "two tokens": (7, np.array([3, 3])),
    "one token": (7, np.array([3])),
}
