"""Hashed n-gram embeddings (Pagnoni et al. 2024, Byte Latent Transformer, section 3.2.1).

They give the network the statistics of short contexts from the start. A network without them spends most of its first
steps on learning these.
"""

import functools

import torch
from torch import Tensor, nn

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.dropout import dropout

# A polynomial rolling hash. Both numbers are primes, and the products stay below 2**63 (token ids are int64).
HASH_MULTIPLIER = 1_000_003
HASH_MODULUS = 2**31 - 1


class NgramEmbedding(nn.Module):
    """The sum of one vector for each of the last 2, 3, ... `ngram` tokens; it is added to the token embedding.

    There is one table for each n, of V**n buckets (a bucket for each n-gram) but at most `config.ngram_rows`. Beyond
    that, n-grams are hashed, and some share a bucket. Before the first token of a sequence stand tokens 0.
    """

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dropout, self.fast_dropout = config.ngram_dropout, config.fast_dropout
        num_buckets = [min(vocab_size**n, config.ngram_rows) for n in range(2, config.ngram + 1)]
        self.tables = nn.ModuleList(nn.Embedding(buckets, config.n_embd) for buckets in num_buckets)

    def forward(self, idx: Tensor, previous_ids: Tensor) -> Tensor:
        """Return vectors (B, T, C) for the tokens `idx` (B, T), which follow `previous_ids` (B, ngram - 1)."""
        all_ids, T = torch.cat([previous_ids, idx], dim=1), idx.size(1)
        hashes, exact_ids, vectors = idx, idx, []
        for distance, table in enumerate(self.tables, start=1):
            start = previous_ids.size(1) - distance
            earlier = all_ids[:, start : start + T]  # for each token, the one `distance` positions before it
            hashes = (hashes * HASH_MULTIPLIER + earlier) % HASH_MODULUS
            exact_ids = exact_ids * self.vocab_size + earlier  # may overflow, but then it is not used
            assert isinstance(table, nn.Embedding)
            has_all_ngrams = self.vocab_size ** (distance + 1) <= table.num_embeddings
            vectors.append(table(exact_ids if has_all_ngrams else hashes % table.num_embeddings))
        total: Tensor = functools.reduce(torch.add, vectors)  # (B, T, C)
        if self.training and self.dropout:  # one mask for all n-grams of a token
            total = total * dropout(total.new_ones(*idx.shape, 1), self.dropout, fast=self.fast_dropout)
        return total
