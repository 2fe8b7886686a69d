"""The types of the keyword arguments, for type checkers and editors.

Generated from `options` and `presets` by `python -m nanogpt_lite.config.keyword_generator`: do not edit.
"""

from pathlib import Path
from typing import Literal, TypedDict

PresetName = Literal[
    "shakespeare_char",
    "tutorial",
    "cpu",
    "finetune",
    "modern-cpu",
    "modern",
]
"""The names of the presets."""


class RuntimeOptions(TypedDict, total=False):
    """The device, the number format, and the seed."""

    device: str
    """auto: a GPU if there is one, else the CPU; or cpu, cuda, cuda:1, mps (default: 'auto')"""

    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """number format of matrix products: auto, float32, bfloat16, or float16 (with loss scaling) (default: 'auto')"""

    threads: int
    """CPU threads; 0: all that this process may use, at most 16 (default: 0 threads)"""

    tf32: bool
    """on NVIDIA GPUs, for float32: faster matrix products of less precision, as in nanoGPT (default: True)"""

    seed: int
    """seed of all random numbers (default: 1337)"""


class NetworkOptions(TypedDict, total=False):
    """The architecture of the network."""

    block_size: int
    """context length (default: 256 tokens)"""

    n_layer: int
    """number of transformer blocks (default: 6)"""

    n_head: int
    """attention heads per block (default: 6)"""

    n_embd: int
    """width of the network: channels per token, a multiple of n_head (default: 384)"""

    bias: bool
    """biases in Linear and LayerNorm, as in GPT-2 (default: False)"""

    dropout: float
    """dropout probability in training (default: 0.2)"""

    fast_dropout: bool
    """on a CPU, draw the masks of dropout three times as fast as PyTorch does (default: True)"""

    checkpoint_activations: bool
    """keep less for the backward pass, which computes each block again, and the loss of many tokens in parts: less
    memory, slower steps (default: False)
    """

    position: Literal["learned", "rotary"]
    """position encoding: learned, or rotary (RoPE) (default: 'learned')"""

    rope_theta: float
    """base of the rotation angles with position=rotary; 0: ten times block_size, which is then stored (default: 0.0)"""

    norm: Literal["layer", "rms"]
    """normalisation: layer (LayerNorm), or rms (RMSNorm without learned gains) (default: 'layer')"""

    qk_norm: bool
    """apply LayerNorm to queries and keys (default: False)"""

    activation: Literal["gelu", "gelu_tanh", "relu2"]
    """activation function of the MLP: gelu, gelu_tanh (the tanh formula, as in GPT-2), or relu2 (ReLU squared)
    (default: 'gelu')
    """

    tied: bool
    """share the weights of the token embedding and the output layer (default: True)"""

    zero_init: bool
    """start with zeros in the last layer of each residual branch, and in the output layer if it is not tied
    (default: False)
    """

    ngram: int
    """also embed the last 2..N tokens as n-grams; 1: off (default: 1)"""

    ngram_rows: int
    """hash buckets per n-gram length (default: 16384)"""

    ngram_dropout: float
    """probability of dropping the n-gram embeddings of a token in training (default: 0.0)"""

    ngram_expert: int
    """mix the network's probabilities with those of counted n-grams of up to N tokens, in evaluation and sampling;
    0: off (default: 0)
    """

    ngram_expert_weight: float
    """weight of the counted n-grams in the mixture; 0: chosen on at most a fiftieth of the train split, which is not
    trained on (default: 0.0)
    """


class TrainOptions(NetworkOptions, RuntimeOptions, total=False):
    """Keyword arguments of `train` and `training`. The dataset is their first argument."""

    tokenizer: str
    """char: one token per character; byte: one per UTF-8 byte; bpe-4096: byte-pair encoding with 4096 tokens,
    trained on the text; gpt2: the byte-pair encoding of GPT-2; auto: char, but of a prepared folder its own
    (default: 'auto')
    """

    out_dir: str | Path
    """the run's folder; empty: the next free runs/DATASET-N (default: '')"""

    init_from: str | Path
    """scratch; resume: continue the run in out_dir; runs/OTHER: start from the weights of that run; gpt2,
    gpt2-medium, gpt2-large, gpt2-xl, or a Hugging Face folder: start from the weights of GPT-2 (default:
    'scratch')
    """

    max_iters: int
    """optimizer steps (default: 5000 steps)"""

    batch_size: int
    """sequences per micro-batch (default: 64 sequences)"""

    batch_sampling: Literal["random", "spread"]
    """where in the train split the sequences begin: random, as in nanoGPT, or spread, so that all steps together see
    each token about equally often (default: 'random')
    """

    gradient_accumulation_steps: int
    """micro-batches per optimizer step (default: 1)"""

    learning_rate: float
    """peak learning rate (default: 0.001)"""

    min_lr: float
    """learning rate at the end of the decay (default: 0.0001)"""

    warmup_iters: int
    """length of the linear warm-up of the learning rate (default: 100 steps)"""

    decay_lr: bool
    """warm-up, then decay of the learning rate; False: constant learning rate (default: True)"""

    lr_decay_iters: int
    """step at which the decay ends; 0: max_iters (default: 0 steps)"""

    cooldown: float
    """fraction of the steps, at the end, over which the learning rate falls linearly; 0: cosine decay (default: 0.0)"""

    optimizer: Literal["adamw", "muon"]
    """adamw; muon: Muon for the weight matrices of the blocks, AdamW for the rest (default: 'adamw')"""

    muon_learning_rate: float
    """peak learning rate of Muon; its schedule is that of learning_rate (default: 0.02)"""

    muon_momentum: float
    """momentum of Muon (default: 0.95)"""

    weight_decay: float
    """weight decay, of matrices and embeddings only (default: 0.1)"""

    beta1: float
    """beta1 of AdamW: decay of the running mean of the gradient (default: 0.9)"""

    beta2: float
    """beta2 of AdamW: decay of the running mean of the squared gradient (default: 0.99)"""

    grad_clip: float
    """largest norm of the gradient; 0: no clipping (default: 1.0)"""

    eval_interval: int
    """steps between two evaluations; each is followed by a checkpoint (default: 250 steps)"""

    eval_iters: int
    """0: loss on the val split, see eval_tokens; N: nanoGPT's estimate from N random batches (default: 0 batches)"""

    eval_tokens: int
    """of a val split more than twice as long, evaluate only this many evenly spread tokens while training; 0: the
    whole split (default: 100000 tokens)
    """

    log_interval: int
    """steps between two reports of the train loss (default: 10 steps)"""

    sample_interval: int
    """steps between two samples that are shown in training; 0: none (default: 0 steps)"""

    keep_every: int
    """steps between two numbered checkpoints (step_001000), which are kept; 0: none (default: 0 steps)"""

    keep_early: float
    """keep the weights of the network, in float16, after step 5 and some later steps, in equal ratios of about 2 or
    more, and after the last one if there is an n-gram expert, together at most this much; 0: none (default: 0.0
    megabytes)
    """

    patience: int
    """stop after this many evaluations without a new best val loss; 0: never (default: 0 evaluations)"""

    target_loss: float
    """stop at this val loss; 0: never (default: 0.0 nats per token)"""

    max_seconds: float
    """stop this call after this time; 0: never (default: 0.0 seconds)"""

    minutes: float
    """train a new run for about this time: 20 steps are timed, and decide max_iters; 0: max_iters is not timed
    (default: 0.0 minutes)
    """

    compile: bool
    """use torch.compile: a slow start, then faster steps on a GPU (default: False)"""

    compile_whole: bool
    """use torch.compile with one graph for the whole network instead of one that serves each block: several times as
    many kernels to compile, then steps with fewer kernels and less memory traffic (default: False)
    """

    trace: str | Path
    """folder for a profiler trace of a few steps, to open in ui.perfetto.dev; empty: none (default: '')"""

    tensorboard: bool
    """write TensorBoard events to out_dir (default: False)"""

    wandb_log: bool
    """log the run to Weights & Biases (default: False)"""

    wandb_project: str
    """project in Weights & Biases (default: 'nanogpt-lite')"""

    wandb_run_name: str
    """name of the run in Weights & Biases; empty: the name of out_dir (default: '')"""


class LoadOptions(RuntimeOptions, total=False):
    """Keyword arguments of `load` and `evaluate`."""

    checkpoint: str
    """best, last, or the name of a numbered one (step_001000) (default: 'best')"""

    int8: bool
    """weight matrices of the blocks in 8 bits: faster sampling on a CPU, almost the same network (default: False)"""


class FilterOptions(LoadOptions, total=False):
    """Which tokens may be drawn, and how likely they are."""

    temperature: float
    """below 1: less random; above 1: more random; 0: always the most likely token (default: 0.8)"""

    top_k: int
    """sample from the k most likely tokens; 0: from all (default: 200 tokens)"""

    top_p: float
    """sample from the most likely tokens whose probabilities add up to this; 1: from all (default: 1.0)"""

    min_p: float
    """leave out tokens less likely than this fraction of the most likely one; 0: none (default: 0.0)"""


class InspectOptions(FilterOptions, total=False):
    """Keyword arguments of `inspect`."""

    top: int
    """how many of the likeliest next tokens to give (default: 10 tokens)"""


class AppOptions(LoadOptions, total=False):
    """Keyword arguments of `app`."""

    remote: str
    """address of another such server, to which all requests are passed on; such as https://NAME.modal.run (default:
    '')
    """

    token: str
    """secret that each request must bring; FILE:token.txt reads it from a file (default: '')"""

    chat_template: str
    """how one message of a chat is written, such as {role}: {content}\\n with \\n for a line break; empty: no chat
    (default: '')
    """

    max_waiting: int
    """requests that may wait for the one that is computed; further ones are refused (default: 100)"""

    training: bool
    """let the page start, stop and continue trainings on this machine (default: True)"""

    answer_seconds: float
    """longest time of an answer, from its request on; its texts end then; 0: no limit (default: 0.0 seconds)"""


class ServeOptions(AppOptions, total=False):
    """Keyword arguments of `serve`."""

    host: str
    """address to listen on; another one than this machine's own needs a token (default: '127.0.0.1')"""

    port: int
    """port to listen on; 0: any free one (default: 8000)"""


class StreamOptions(FilterOptions, total=False):
    """Keyword arguments of `stream`."""

    start: str
    """the prompt; FILE:prompt.txt reads it from a file (default: '\\n')"""

    max_new_tokens: int
    """length of a sample (default: 500 tokens)"""

    stop: str
    """end a sample before this text; empty: never (default: '')"""


class SampleOptions(StreamOptions, total=False):
    """Keyword arguments of `sample` and `stream_batch`."""

    num_samples: int
    """number of samples (default: 1 samples)"""


class RunOptions(TrainOptions, SampleOptions, total=False):
    """Keyword arguments of `api.main_job.run`."""

    dataset: str | Path
    """shakespeare_char, python_docs, or a text: a file, folder, glob or URL (default: 'shakespeare_char')"""
