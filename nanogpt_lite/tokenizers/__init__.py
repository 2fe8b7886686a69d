"""Tokenizers: text to token ids and back.

`base` holds the protocol that the other packages use. `char`, `byte` and `bpe` implement it, and `registry` makes one
from its name or its JSON form. `gpt2` reads GPT-2's tokenizer files, and `hub` fetches them. Start with `base`.
See `nanogpt_lite.data` for reading texts and writing token ids to disk.
"""
