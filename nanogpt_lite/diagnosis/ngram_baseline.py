"""The loss of count-based n-gram models of the same tokens: a baseline for the loss of a network.

The models are those of modified Kneser-Ney smoothing, interpolated (Chen and Goodman 1999, "An empirical study of
smoothing techniques for language modeling"). With h the k-1 tokens before w, and h' those without the first one:

    p_k(w | h) = (c(hw) - D(c(hw)) + sum_v D(c(hv)) * p_{k-1}(w | h')) / sum_v c(hv)

D is a discount for each of the counts 1, 2, and 3 or more; D(0) = 0. In the model of order n, c counts the occurrences
for k = n, and the distinct tokens before the k-gram for k < n; the start of the text is one such token. p_0 is uniform
over the vocabulary, so every probability is positive. If h was never followed by a token, p_k is p_{k-1}.

Nothing is hashed or approximated. The id of a k-gram is its rank among the distinct k-grams of the train tokens, and
its key is (id of its first k-1 tokens) * vocab_size + (its last token), which sorts and fits in int64. Memory: up to
about 110 bytes per train token, whatever the highest order is, because only two orders are held at a time.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from nanogpt_lite.errors import UserError
from nanogpt_lite.ngrams.counted_tokens import read_counted, read_stretches
from nanogpt_lite.ngrams.discounts import estimate_discounts
from nanogpt_lite.ngrams.ranking import Ints, rank_keys
from nanogpt_lite.tokenizers.base import Ids

if TYPE_CHECKING:
    from nanogpt_lite.data.batching import Tokens  # which imports torch

Floats = npt.NDArray[np.float64]

SCORED_TOKENS = 100_000  # of a val split
WINDOW_TOKENS = 1_000  # contiguous val tokens that are predicted
BASELINE_ORDERS = (1, 2, 5)


class NgramLosses(NamedTuple):
    """The losses of n-gram models in nats per token, on a val split."""

    unigram: float
    bigram: float
    five_gram: float


def baseline_losses(train_tokens: "Tokens", val_tokens: "Tokens", vocab_size: int) -> NgramLosses:
    """The losses on a val split of n-gram models that count the train split. `UserError` if val has fewer than 2.

    Of a longer train split, `COUNTED_TOKENS` tokens are counted, in contiguous stretches that are evenly spread over
    the split: its end alone may be of another kind than the rest. The few k-grams across two stretches are counted as
    well. Of a longer val split, `SCORED_TOKENS` tokens are predicted, in evenly spread windows, each after the tokens
    that precede it in the split. So on a long text the losses are higher than with all counts.
    """
    train = read_counted(train_tokens)
    windows, n_given = _read_windows(val_tokens, n_context=max(BASELINE_ORDERS) - 1)
    # one text: the tokens before a window come after another window, but they are not predicted
    losses = _token_losses(train, windows.ravel(), vocab_size=vocab_size, orders=BASELINE_ORDERS)
    return NgramLosses(*(float(nats.reshape(windows.shape)[:, n_given:].mean()) for _, nats in losses))


def kneser_ney_losses(train: Ids, val: Ids, *, vocab_size: int, orders: Sequence[int]) -> dict[int, float]:
    """The mean loss in nats per token of an n-gram model of each order n, counted in `train`, on all of `val`.

    As in the evaluation of a network, each val token but the first is predicted, from up to n-1 val tokens before it.
    The first ones have a shorter context: the model is used as if nothing was known of the longer one.
    `UserError` if `val` has fewer than 2 tokens.

    >>> text = np.array([0, 1] * 50)
    >>> losses = kneser_ney_losses(text, text, vocab_size=2, orders=[1, 2])
    >>> {order: round(loss, 3) for order, loss in losses.items()}
    {1: 0.693, 2: 0.005}
    """
    _require_targets(val)
    losses = _token_losses(train, val, vocab_size=vocab_size, orders=orders)
    return {order: float(nats[1:].mean()) for order, nats in losses}


class _Ngrams(NamedTuple):
    """The k-grams of one order k: N distinct ones in T train tokens, and those of the val tokens."""

    order: int
    n_contexts: int  # distinct (k-1)-grams
    keys: Ints  # (N,), sorted
    counts: Ints  # (N,), occurrences
    train_ids: Ints  # (T - k + 1,), of the k-gram that starts at each train token
    val_ids: Ints  # the same for the val tokens; -1: not in the train tokens
    val_contexts: Ints  # the id of the first k-1 tokens of each of these


def _token_losses(train: Ids, val: Ids, *, vocab_size: int, orders: Sequence[int]) -> Iterator[tuple[int, Floats]]:
    """For each of `orders`, in rising order: the loss of every val token, the first one included."""
    assert min(orders) >= 1
    assert max(np.max(train, initial=0), np.max(val, initial=0)) < vocab_size  # else keys would not be unique
    train_tokens, val_tokens = np.asarray(train, np.int64), np.asarray(val, np.int64)
    ngrams = _make_empty_ngrams(len(train), len(val))
    lower = np.full(len(val), 1 / vocab_size)
    for order in range(1, max(orders) + 1):
        longer = _extend(ngrams, train_tokens, val_tokens, vocab_size)
        if order > 1:
            lower = _interpolate(ngrams, _continuation_counts(ngrams, longer), lower, vocab_size)
        ngrams = longer
        if order in orders:
            yield order, -np.log(_interpolate(ngrams, ngrams.counts, lower, vocab_size))


def _make_empty_ngrams(n_train: int, n_val: int) -> _Ngrams:
    """Order 0: one n-gram without tokens, which is before each token and after the last. `_extend` starts with it."""
    one, train_ids, val_ids = (np.zeros(length, np.int64) for length in (1, n_train + 1, n_val + 1))
    return _Ngrams(0, 0, keys=one, counts=one, train_ids=train_ids, val_ids=val_ids, val_contexts=val_ids)


def _extend(ngrams: _Ngrams, train: Ints, val: Ints, vocab_size: int) -> _Ngrams:
    """The k-grams that are one token longer. There are none if the train tokens are fewer."""
    order, val_contexts = ngrams.order + 1, ngrams.val_ids[:-1]
    keys, train_ids, counts = rank_keys(ngrams.train_ids[:-1] * vocab_size + train[order - 1 :])
    val_keys = val_contexts * vocab_size + val[order - 1 :]  # negative for an unknown context: not in `keys`
    ranks = np.searchsorted(keys, val_keys)
    is_known = np.append(keys, np.iinfo(np.int64).min)[ranks] == val_keys
    return _Ngrams(order, len(ngrams.keys), keys, counts, train_ids, np.where(is_known, ranks, -1), val_contexts)


def _continuation_counts(ngrams: _Ngrams, longer: _Ngrams) -> Ints:
    """The number of distinct tokens before each k-gram (N,): those of the (k+1)-grams that end in it.

    The start of the text counts as one token, so that the first k-gram has a count even if it occurs nowhere else.
    """
    starts = np.empty(len(longer.keys), np.int64)
    starts[longer.train_ids] = np.arange(len(longer.train_ids))  # of any occurrence of each
    counts = np.bincount(ngrams.train_ids[starts + 1], minlength=len(ngrams.keys))
    counts[ngrams.train_ids[:1]] += 1
    return counts


def _interpolate(ngrams: _Ngrams, counts: Ints, lower: Floats, vocab_size: int) -> Floats:
    """p_k of every val token, from the counts of the k-grams (N,) and p_{k-1}, `lower`. See the top of the module."""
    counts_of_counts = np.bincount(np.minimum(counts, 5), minlength=6).tolist()
    discounts = np.array(estimate_discounts(counts_of_counts))[np.minimum(counts, 3)]  # (N,)
    contexts = ngrams.keys // vocab_size
    # each with one entry more, 0, which is that of the index -1: an unknown context or k-gram
    totals = np.bincount(contexts, weights=counts, minlength=ngrams.n_contexts + 1)[ngrams.val_contexts]
    reserved = np.bincount(contexts, weights=discounts, minlength=ngrams.n_contexts + 1)[ngrams.val_contexts]
    kept = np.append(counts - discounts, 0.0)[ngrams.val_ids]
    shorter = lower[ngrams.order - 1 :]  # the tokens before these have fewer than k-1 tokens before them
    is_seen = totals > 0
    result = lower.copy()
    result[ngrams.order - 1 :] = np.where(is_seen, (kept + reserved * shorter) / np.where(is_seen, totals, 1), shorter)
    return result


def _read_windows(tokens: "Tokens", n_context: int) -> tuple[Ids, int]:
    """Windows of val tokens (windows, tokens), and the number of tokens at the start of each that are only context."""
    _require_targets(tokens)
    if len(tokens) <= SCORED_TOKENS + n_context:
        return read_stretches(tokens, number=1, length=len(tokens)), 1
    number = SCORED_TOKENS // WINDOW_TOKENS
    return read_stretches(tokens, number=number, length=n_context + WINDOW_TOKENS), n_context


def _require_targets(val: "Tokens | Ids") -> None:
    if len(val) < 2:
        raise UserError(
            f"the val split is too short to predict a token from the one before it: its length is {len(val)}, and at "
            "least 2 tokens are needed; give a longer text"
        )
