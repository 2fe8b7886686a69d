"""The network: token ids in, logits out. GPT-2 as nanoGPT has it; later ideas are options of `NetworkConfig`.

Start with `gpt`, then `block` and `attention`. `rotary` (RoPE), `ngram_embedding` and `activations` are the optional
parts; `kv_cache` keeps keys and values while text is generated. `recomputation` and `compilation` train with less
memory and faster, `shallow_copy` copies a network without its tensors. The optimizer is in `optim`, the training loop
in `trainer`, sampling in `generation`.
"""
