"""A model of counted n-grams, whose probabilities of the next token are mixed with those of the network.

Counts give at once what a network learns slowly, and the network also predicts what never occurred. Mixtures of
both are old (Neubig and Dyer 2016, "Generalizing and hybridizing count-based and neural language models") and new
(infini-gram, Liu et al. 2024). The n-gram model is that of modified Kneser-Ney smoothing, interpolated (Chen and
Goodman 1999, "An empirical study of smoothing techniques for language modeling"). With h the k-1 tokens before w, and
h' without the first one:

    p_k(w | h) = (c(hw) - D(c(hw)) + sum_v D(c(hv)) * p_{k-1}(w | h')) / sum_v c(hv)

c is the count in `ngram_counts`, and D a discount for each of the counts 1, 2, and 3 or more; D(0) = 0. p_0 is uniform
over the vocabulary, so every probability is positive. Where h has no children in the trie, p_k is p_{k-1}.

Letters: B batch, T time, K the order (the longest n-grams), M candidates for the next token, V vocabulary, E nodes.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.ngrams.discounts import estimate_discounts
from nanogpt_lite.ngrams.ngram_counts import KEPT_COUNTS, NgramCounts, node_lengths

UNFITTED_WEIGHT = 0.4  # near the best one for 7 of 11 tuning texts of `benchmarks/texts.py`
MAX_LOOKUPS = 2**22  # at a time: those of many tokens and a large vocabulary would not fit into memory together


# Of more values than these, PyTorch divides a search among threads. Starting them takes longer than a few searches.
SERIAL_SEARCHES, FEW_SEARCHES = 200, 4000


class NgramExpert(nn.Module):
    """Probabilities of the next token from counts, mixed with the network's at the same weight everywhere.

    A context is the last 0 to K - 1 tokens, and is given by K nodes of the trie, one for each length: the root first,
    and E + 1 for an n-gram that is not in it. A checkpoint stores the counts (`NgramCounts`), which are buffers as the
    tables made from them are. Before `set_counts`, each token is as likely as any other. The weight of the mixture is
    `config.ngram_expert_weight`; if that is 0, it is `UNFITTED_WEIGHT` until `set_weight`, see `trainer.ngram_fitting`.
    """

    weight: Tensor  # () float32: of the counted n-grams in the mixture
    keys: Tensor  # (E + 1,) int64: number of the parent * V + token, ascending; then a number above all of them
    kept: Tensor  # (E + 1,) float32: c - D(c); 0 at the end
    scales: Tensor  # (E + 2,) float32: 1 / the sum of the counts of the children; 0 without children
    backoffs: Tensor  # (E + 2,) float32: the sum of their discounts / that of their counts; 1 without children

    def __init__(self, config: NetworkConfig, vocab_size: int) -> None:
        super().__init__()
        self.order, self.vocab_size = config.ngram_expert, vocab_size
        self.register_buffer("weight", torch.full((), config.ngram_expert_weight or UNFITTED_WEIGHT))
        empty = torch.zeros(0, dtype=torch.int32)
        counts = NgramCounts(empty, empty, empty.new_zeros(1), torch.zeros(0, KEPT_COUNTS, dtype=torch.int64))
        for name, tensor in counts._asdict().items():
            self.register_buffer(name, tensor)
        above_all = torch.full((1,), torch.iinfo(torch.int64).max)
        tables = {"keys": above_all, "kept": torch.zeros(1), "scales": torch.zeros(2), "backoffs": torch.ones(2)}
        for name, tensor in tables.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def ngram_counts(self) -> NgramCounts:
        """The counts, as `set_counts` got them, on the device of the expert."""
        return NgramCounts(*(self.get_buffer(name) for name in NgramCounts._fields))

    def set_counts(self, counts: NgramCounts) -> None:
        """Use these counts from now on. `ValueError` if they are not those of n-grams of up to K tokens."""
        lengths = _require_valid(counts, self.vocab_size, self.order)
        num_nodes = len(lengths)
        parents, keys = _parents_and_keys(counts, self.vocab_size)
        discounts = torch.tensor([estimate_discounts(row) for row in counts.counts_of_counts.tolist()])  # (lengths, 4)
        discounted = discounts[lengths - 1, counts.counts.clamp(max=3)]  # (E,)
        totals = torch.zeros(num_nodes + 2, dtype=torch.float64).index_add_(0, parents, counts.counts.double())
        reserved = torch.zeros_like(totals).index_add_(0, parents, discounted.double())
        has_children = totals > 0
        device = self.keys.device
        for name, tensor in counts._asdict().items():
            setattr(self, name, tensor.to(device))
        self.keys = torch.cat([keys, self.keys.new_full((1,), torch.iinfo(torch.int64).max, device="cpu")]).to(device)
        self.kept = nn.functional.pad(counts.counts - discounted, (0, 1)).to(device)
        self.scales = torch.where(has_children, 1 / totals, 0.0).float().to(device)
        self.backoffs = torch.where(has_children, reserved / totals, 1.0).float().to(device)

    def set_weight(self, weight: float) -> None:
        """Mix with this weight from now on. `ValueError` unless it is above 0 and below 1."""
        if not 0 < weight < 1:
            raise ValueError(f"the weight of the n-gram expert is {weight}")
        self.weight.fill_(weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the tables to another device, but keep them in float32 whatever the number format of the network."""
        super()._apply(lambda tensor: fn(tensor.view(torch.int32)).view(tensor.dtype), recurse)  # type: ignore[no-untyped-call]
        return self

    def start(self, rows: int) -> Tensor:
        """The nodes (B, K) of the context before the first token."""
        nodes = torch.full((rows, self.order), len(self.scales) - 1, device=self.keys.device)
        nodes[:, 0] = 0
        return nodes

    def contexts(self, idx: Tensor, before: Tensor | None = None) -> Tensor:
        """The nodes (B, T, K) of the context after each of `idx` (B, T); those before the first are `before` (B, K)."""
        before = self.start(len(idx)) if before is None else before
        if idx.size(1) == 1:
            return torch.cat([before[:, :1], self._children(before[:, :-1], idx)], dim=1)[:, None]
        nodes = [torch.zeros_like(idx)]
        for length in range(1, self.order):
            earlier = torch.cat([before[:, length - 1 : length], nodes[-1][:, :-1]], dim=1)
            nodes.append(self._children(earlier, idx))
        return torch.stack(nodes, dim=2)

    def context_lengths(self, contexts: Tensor) -> Tensor:
        """The number of tokens (B, T), int64, of the longest context that was counted, of each of contexts (B, T, K).

        0 if no context but the empty one was, so that the next token is as likely as it is common.
        """
        was_counted = self.scales[contexts[..., 1:]] > 0
        return was_counted.long().cumprod(-1).sum(-1)

    def mix(self, logits: Tensor, contexts: Tensor) -> Tensor:
        """The log-probabilities of the mixture (B, T, V), from the network's logits (B, T, V) in contexts (B, T, K)."""
        return self.mix_log_probs(logits.float().log_softmax(-1), self.distribution(contexts))

    def losses(self, logits: Tensor, contexts: Tensor, targets: Tensor) -> Tensor:
        """The mean losses of the mixture and of the network alone for targets (B, T), in nats per token, shape (2,)."""
        targets = targets[..., None]
        network = logits.float().log_softmax(-1).gather(2, targets)  # (B, T, 1)
        mixture = self.mix_log_probs(network, self.probabilities(contexts, targets))
        return -torch.stack([mixture.mean(), network.mean()])

    def mix_log_probs(self, log_probs: Tensor, p: Tensor) -> Tensor:
        """The log-probabilities of the mixture, from those of the network and p_K, all of the same shape."""
        return torch.logaddexp(log_probs + torch.log1p(-self.weight), (p * self.weight).log())

    def distribution(self, contexts: Tensor) -> Tensor:
        """p_K of all tokens (B, T, V) in contexts (B, T, K), float32."""
        candidates = torch.arange(self.vocab_size, device=contexts.device)
        return self.probabilities(contexts, candidates.expand(*contexts.shape[:2], -1))

    def probabilities(self, contexts: Tensor, candidates: Tensor) -> Tensor:
        """p_K of candidates (B, T, M) in contexts (B, T, K), float32."""
        shape = candidates.shape
        contexts, candidates = contexts.flatten(0, 1), candidates.flatten(0, 1)  # (B T, K), (B T, M)
        rows = max(1, MAX_LOOKUPS // (self.order * candidates.size(1)))
        parts = zip(torch.split(contexts, rows), torch.split(candidates, rows), strict=True)
        return torch.cat([self._probabilities(*part) for part in parts]).view(shape)

    def _probabilities(self, contexts: Tensor, candidates: Tensor) -> Tensor:
        """p_K of candidates (N, M) in contexts (N, K)."""
        nodes, _ = self._find(contexts[:, :, None], candidates[:, None])  # (N, K, M)
        backoffs = self.backoffs[contexts].flip(1).cumprod(1).flip(1)  # (N, K): the product of this one and all longer
        after = nn.functional.pad(backoffs[:, 1:], (0, 1), value=1.0)
        seen = self.kept[nodes] * (self.scales[contexts] * after)[:, :, None]
        return seen.sum(1) + backoffs[:, :1] / self.vocab_size

    def _children(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The children of nodes by tokens; E + 1 where there is none."""
        children, is_found = self._find(nodes, tokens)
        return torch.where(is_found, children + 1, len(self.scales) - 1)

    def _find(self, nodes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the children of nodes by tokens, less 1; E where there is none. And whether there is one."""
        keys = nodes * self.vocab_size + tokens
        indices = _search(self.keys, keys)
        is_found = self.keys[indices] == keys
        return torch.where(is_found, indices, len(self.keys) - 1), is_found


def _search(ascending: Tensor, values: Tensor) -> Tensor:
    """The index of the first element that is not below each value."""
    if not (values.device.type == "cpu" and SERIAL_SEARCHES < values.numel() < FEW_SEARCHES):
        return torch.searchsorted(ascending, values)
    parts = [torch.searchsorted(ascending, part) for part in torch.split(values.flatten(), SERIAL_SEARCHES)]
    return torch.cat(parts).view(values.shape)


def _parents_and_keys(counts: NgramCounts, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The number of the parent of each node, and this * V + its token; both (E,)."""
    parents = torch.repeat_interleave(counts.num_children.long())
    return parents, parents * vocab_size + counts.tokens


def _require_valid(counts: NgramCounts, vocab_size: int, order: int) -> Tensor:
    """The lengths of n-grams (E,). `ValueError` unless the counts are those of n-grams of up to `order` tokens."""
    lengths, tokens = node_lengths(counts), counts.tokens
    is_valid = len(tokens) == len(counts.counts) == len(lengths) > 0
    is_valid = is_valid and counts.counts_of_counts.shape[1:] == (KEPT_COUNTS,)
    is_valid = is_valid and int(lengths.max()) <= len(counts.counts_of_counts) <= order
    if is_valid:
        keys = _parents_and_keys(counts, vocab_size)[1]
        checks = (
            tokens >= 0,
            tokens < vocab_size,
            keys[1:] > keys[:-1],
            counts.counts > 0,
            counts.counts_of_counts >= 0,
        )
        is_valid = all(bool(check.all()) for check in checks)
    if not is_valid:
        raise ValueError("the counts of n-grams are damaged")
    return lengths
