"""Models of other programs, in and out: nanoGPT's checkpoints, Hugging Face's GPT-2, and weights without optimizer.

Start with `conversion`, the public functions. Each format is in the module of its name. A checkpoint of this program is
read and written by `checkpoint`.
"""
