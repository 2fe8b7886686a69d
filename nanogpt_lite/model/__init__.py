"""The network: token ids in, logits out. GPT-2 as nanoGPT has it; later ideas are options of `NetworkConfig`.

Start with `gpt`, then `block` and `attention`. `rotary` (RoPE), `ngram_embedding` and `activations` are the optional
parts; `ngram_expert` is the model of counted n-grams that is mixed with the network. `kv_cache` keeps keys and values
while text is generated. `recomputation` and `compilation` train with less memory and faster, `shallow_copy` copies a
network without its tensors. The counts are in `ngrams`, the optimizer in `optim`, the training loop in `trainer`,
sampling in `generation`.
"""
