"""N-gram embeddings against a dictionary from n-grams to vectors."""

import dataclasses

import pytest
import torch
from random_gpt import SMALL, VOCAB, random_ids
from torch import nn

from nanogpt_lite.model.ngram_embedding import NgramEmbedding


def test_each_bigram_has_its_own_bucket_and_equal_trigrams_share_one():
    """With V**2 buckets there is one for each bigram; trigrams are hashed into them."""
    embedding = NgramEmbedding(dataclasses.replace(SMALL, ngram=3, ngram_rows=VOCAB**2), VOCAB)
    bigrams, trigrams = embedding.tables
    assert isinstance(bigrams, nn.Embedding)
    assert isinstance(trigrams, nn.Embedding)
    assert (bigrams.num_embeddings, trigrams.num_embeddings) == (VOCAB**2, VOCAB**2)
    ids = random_ids(1, 12)[0].tolist()
    vectors = embedding(torch.tensor([ids]), torch.zeros(1, 2, dtype=torch.int64))[0]
    padded_ids = [0, 0, *ids]
    vector_of: dict[tuple[int, ...], torch.Tensor] = {}
    for position, vector in enumerate(vectors):
        trigram = tuple(padded_ids[position : position + 3])
        trigram_vector = vector - bigrams.weight[trigram[2] * VOCAB + trigram[1]]
        assert any(torch.allclose(trigram_vector, bucket, atol=1e-5) for bucket in trigrams.weight)
        vector_of.setdefault(trigram, vector)
        assert torch.equal(vector_of[trigram], vector)
    repeated = embedding(torch.tensor([ids[:3] * 4]), torch.zeros(1, 2, dtype=torch.int64))[0]
    assert torch.equal(repeated[3:6], repeated[6:9])
    assert not torch.equal(repeated[0], repeated[3])  # the same token after other tokens


def test_ngram_dropout_drops_all_ngrams_of_a_token_in_training_only():
    config = dataclasses.replace(SMALL, ngram=3, ngram_dropout=0.25)
    embedding, x = NgramEmbedding(config, VOCAB), random_ids(64, 64)
    previous_ids = torch.zeros(64, 2, dtype=torch.int64)
    without_dropout = embedding.eval()(x, previous_ids)
    torch.manual_seed(5)
    ratios = embedding.train()(x, previous_ids) / without_dropout
    torch.testing.assert_close(ratios, ratios[..., :1].expand_as(ratios), atol=1e-4, rtol=1e-4)
    is_kept = ratios[..., 0] != 0
    torch.testing.assert_close(ratios[is_kept], torch.full_like(ratios[is_kept], 1 / 0.75), atol=1e-4, rtol=1e-4)
    assert is_kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
