"""Text generation: from a network and a prompt to tokens, and from tokens to text.

Start with `generate` (the token loop), `decoding` (from one token to the next) and `sampling` (temperature, top-k,
top-p, min-p). `text_stream` decodes tokens to text as they come. Optional fast paths are `cuda_graph` with
`graph_decoder` for a GPU, and `cpu_linear` for a CPU. The public functions `sample` and `stream` are in `api`.
"""
