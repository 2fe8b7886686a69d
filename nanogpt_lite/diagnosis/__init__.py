"""Diagnosis: figures with which the losses of a training are compared.

`ngram_baseline` says what models that only count reach on the same tokens, `measures` converts a loss into units that
do not depend on the tokenizer, and `verdict` says in a sentence what the loss means, and what to do. Nothing here
trains or needs PyTorch: see `trainer` for the losses of a network. Start with `measures`.
"""
