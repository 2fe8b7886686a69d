"""Embeddings of the last few tokens together: what a network without them takes most of its first steps to find out."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig


class NgramEmbedding(nn.Module):
    """The last 2, 3, … `ngram` tokens together: a vector each, added to the token's own (Pagnoni et al. 2024, BLT).

    Where there are more n-grams than `ngram_rows`, some share a vector, as a hash has it. Before the first token
    stand tokens 0.
    """

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dropout = config.ngram_dropout
        rows = [min(vocab_size**n, config.ngram_rows) for n in range(2, config.ngram + 1)]
        self.tables = nn.ModuleList(nn.Embedding(count, config.n_embd) for count in rows)

    def forward(self, idx: Tensor, before: Tensor) -> Tensor:
        """Vectors (B, T, C) for the tokens `idx` (B, T), of which `before` (B, ngram - 1) are the predecessors."""
        all_ids, T = torch.cat([before, idx], dim=1), idx.size(1)
        hashed, number, found = idx, idx, []
        for distance, table in enumerate(self.tables, start=1):
            begin = before.size(1) - distance
            earlier = all_ids[:, begin : begin + T]
            hashed = (hashed * 1_000_003 + earlier) % (2**31 - 1)
            number = number * self.vocab_size + earlier  # which n-gram it is, as long as they are few
            assert isinstance(table, nn.Embedding)
            exact = self.vocab_size ** (distance + 1) <= table.num_embeddings
            found.append(table(number if exact else hashed % table.num_embeddings))
        vectors: Tensor = functools.reduce(torch.add, found)
        if self.training and self.dropout:  # all n-grams of a token go together
            vectors = vectors * F.dropout(vectors.new_ones(*idx.shape, 1), self.dropout)
        return vectors
