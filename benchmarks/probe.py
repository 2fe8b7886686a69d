"""What has to happen inside a process of its own. `vs_nanogpt.py` starts it, and reads the JSON in its last line.

    python probe.py VERB ARGUMENTS…

The verbs about nanoGPT run in a folder that holds its files, and import them from there.
"""

import json
import runpy
import sys
import time
from collections import deque
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nanogpt_lite as ng
from nanogpt_lite.data import batching
from nanogpt_lite.trainer import evaluation

TOKENS = 500  # in a sample
WARM_UP = 20  # tokens
TEMPERATURE, TOP_K = 0.8, 200


def sample_ours(checkpoint: str, samples: str, numbers: str, device: str) -> dict[str, float]:
    """Tokens per second of `samples` samples at once, as the command `sample` makes them; loading left out."""
    options: dict[str, Any] = {"int8": numbers == "int8", "dtype": numbers.replace("int8", "bfloat16")}

    def draw(tokens: int) -> float:
        pieces = ng.pieces(
            checkpoint,
            device=device,
            **options,
            start="\n",
            num_samples=int(samples),
            max_new_tokens=tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
        )
        next(pieces)  # the prompt
        begun = time.perf_counter()
        deque(pieces, maxlen=0)
        return time.perf_counter() - begun

    draw(warm_up(device))
    return {"tokens_per_second": int(samples) * TOKENS / draw(TOKENS)}


def sample_theirs(checkpoint: str, samples: str, device: str) -> dict[str, float]:
    """Tokens per second of `samples` samples one after the other, as nanoGPT's sample.py makes them."""
    model = _load_theirs(checkpoint).to(device)
    prompt = torch.zeros(1, 1, dtype=torch.int64, device=device)
    torch.backends.cuda.matmul.allow_tf32 = True

    def draw(tokens: int) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device != "cpu"), torch.no_grad():
            model.generate(prompt, tokens, temperature=TEMPERATURE, top_k=TOP_K).tolist()

    draw(warm_up(device))
    begun = time.perf_counter()
    for _ in range(int(samples)):
        draw(TOKENS)
    return {"tokens_per_second": int(samples) * TOKENS / (time.perf_counter() - begun)}


def evaluate_theirs(checkpoint: str, split: str) -> dict[str, float | None]:
    """The loss of nanoGPT's network over a whole split, by the function that evaluates ours."""
    model = _load_theirs(checkpoint)
    tokens = np.fromfile(split, dtype="<u2")
    # its forward takes a view of the targets, which need to be contiguous for that
    windows = ((x, y.contiguous()) for x, y in evaluation.split_windows(tokens, model.config.block_size))
    return {"val_loss": evaluation.mean_loss(model, windows, torch.device("cpu"), "float32")}


def record_theirs(path: str, *arguments: str) -> dict[str, int]:
    """Run nanoGPT's train.py, and save what its network had at first, was given, and gave back while training."""
    initial: dict[str, Tensor] = {}
    given: list[batching.Batch] = []
    losses: list[float] = []
    kind = _their_model().GPT

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, kind):
            if not initial:  # the first call comes before the first step
                initial.update({name: tensor.clone() for name, tensor in module.state_dict().items()})
            if module.training:
                given.append((inputs[0], inputs[1]))
                losses.append(output[1].item())

    handle = nn.modules.module.register_module_forward_hook(note)
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
    handle.remove()
    torch.save({"initial": initial, "batches": given, "losses": losses}, path)
    return {"steps": len(losses)}


def warm_up(device: str) -> int:
    """How many tokens to draw before the clock starts: a GPU's libraries look for a kernel at each new length."""
    return WARM_UP if device == "cpu" else TOKENS


def _their_model() -> Any:
    """NanoGPT's model.py, from the current folder."""
    sys.path.insert(0, str(Path.cwd()))
    return import_module("model")


def _load_theirs(checkpoint: str) -> Any:
    """The network in one of nanoGPT's checkpoints, ready to draw from."""
    module = _their_model()
    # nanoGPT has no other format than torch.save's; weights_only executes nothing
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    return model.eval()


VERBS: dict[str, Any] = {verb.__name__: verb for verb in (sample_ours, sample_theirs, evaluate_theirs, record_theirs)}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))
