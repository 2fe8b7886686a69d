"""Counts of n-grams: of which tokens, how they are counted, and how they are discounted.

Both n-gram models are made of this: the one that losses are compared with (`diagnosis.ngram_baseline`), which has all
n-grams and is exact, and the one that is mixed with a network (`model.ngram_expert`), which has those of a trie. Start
with `ngram_counts`.
"""
