"""Diagnosis: figures with which the losses of a training are compared.

`ngram_baseline` says what models that only count reach on the same tokens, `measures` converts a loss into units that
do not depend on the tokenizer, `loss_trend` says where the losses of a run are going, and `verdict` says in a sentence
what they mean, and what to do. `copies` finds what a text has in common with the train split. Nothing here trains or
needs PyTorch: see `trainer` for the losses of a network. Start with `measures`.
"""
