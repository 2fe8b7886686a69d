"""Text generation: from a network and a prompt to tokens, and from tokens to text.

Start with `generate` (the token loop), `decoding` (from one token to the next) and `sampling` (temperature, top-k,
top-p, min-p). `text_stream` decodes tokens to text as they come. `cuda_graph` (with `graph_decoder`) and `cpu_linear` are optional
fast paths for a GPU and for a CPU. The public functions `sample` and `stream` are in `api`.
"""
