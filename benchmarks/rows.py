"""The rows of the table of `vs_nanogpt.py`: what is measured, notes about it, and targets."""

from table import Row

FEWER_SAMPLES = 2  # nanoGPT generates these instead of ten

PREPARE = Row(
    part="prepare",
    name="prepare",
    unit="MB/s",
    note="100 MB of ASCII text, whole process; train.bin and val.bin are byte-equal",
    least_ratio=10,
)
_SAMPLING = (
    "10.65M parameters, in nanoGPT in float32, since its sample.py supports no other dtype on a CPU; int8 is "
    "--int8=True with --dtype bfloat16; 500 tokens after one, temperature 0.8, top_k 200; without start-up. Once the "
    "context of 256 is full, nanogpt_lite keeps its last half and fills it again; nanoGPT processes the whole context "
    "for each token"
)
_AT_ONCE = (
    "; nanogpt_lite generates all ten at once, nanoGPT one after the other, so its rate is measured "
    f"with {FEWER_SAMPLES} of them"
)
FORMATS = {"float32": (8, 40), "bfloat16": (18, 100), "int8": (25, 150)}  # and the targets for one sample and for ten
ONE_SAMPLE, TEN_SAMPLES = (
    {
        name: Row(part="sample", name=f"{samples}, {name}", unit="tokens/s", note=note, least_ratio=targets[number])
        for name, targets in FORMATS.items()
    }
    for number, (samples, note) in enumerate([("one sample", _SAMPLING), ("ten samples", f"the same{_AT_ONCE}")])
)
SAMPLING_MEMORY = Row(
    part="sample",
    name="ten samples, memory",
    unit="MB",
    note="peak of the process, in float32; ten at once in nanogpt_lite, one at a time in nanoGPT",
    least_ratio=1,
)
TRAINING = Row(
    part="train",
    name="cpu recipe",
    unit="s",
    note="whole process; with each program's own evaluations: of the whole val split every 500 steps in nanogpt_lite, "
    "from 20 random batches of each split every 250 steps in nanoGPT",
    least_ratio=1,
)
STEP = Row(
    part="train",
    name="cpu recipe, a step",
    unit="ms",
    note="float32 in both; median over the run, then over the runs",
    least_ratio=1.2,
)
LOSS = Row(
    part="train",
    name="cpu recipe, val loss",
    unit="nats",
    note="of the last weights over the whole val split, each target once; both by the same function",
    most=1.90,
)
MEMORY = Row(part="train", name="cpu recipe, memory", unit="MB", note="peak of the process", least_ratio=1)
STEP_FAST = Row(
    part="train",
    name="cpu recipe in bfloat16, a step",
    unit="ms",
    note="--dtype bfloat16 in nanogpt_lite; nanoGPT's is the step above: on a CPU its train.py supports float32 only",
    least_ratio=2,
)
LOSS_FAST = Row(
    part="train",
    name="cpu recipe in bfloat16, val loss",
    unit="nats",
    note="as above; the weights stay float32",
    most=1.90,
)
SPRINT = Row(
    part="train",
    name="sprint, training",
    unit="s",
    note="evaluation and start-up left out: in nanogpt_lite --preset modern-cpu with one block, half the batch, n-gram "
    "embeddings of up to 5 without dropout, and so many --max_iters that it ends at or below the val loss of nanoGPT's "
    "recipe, without counted n-grams; in nanoGPT its recipe",
    least_ratio=40,
)
SPRINT_PROCESS = Row(
    part="train",
    name="sprint, whole process",
    unit="s",
    note="the same with start-up and an evaluation",
    least_ratio=20,
)
SPRINT_LOSS = Row(
    part="train",
    name="sprint, val loss",
    unit="nats",
    note="of the last weights, over the whole val split, by which the options and the number of steps were chosen",
    least_ratio=1,
)
COUNTED_PROCESS = Row(
    part="train",
    name="sprint with counted n-grams, whole process",
    unit="s",
    note="--preset modern-cpu for a single step, with start-up, counting and an evaluation: the counted n-grams alone "
    "have a lower loss than nanoGPT's recipe",
    least_ratio=20,
)
COUNTED_LOSS = Row(
    part="train",
    name="sprint with counted n-grams, val loss",
    unit="nats",
    note="of the last weights and the counted n-grams, over the whole val split",
    least_ratio=1,
)
MODERN = Row(
    part="train", name="modern recipe", unit="s", note="--preset modern-cpu as it is, whole process", least_ratio=1
)
MODERN_LOSS = Row(
    part="train",
    name="modern recipe, val loss",
    unit="nats",
    note="of the last weights and the counted n-grams, over the whole val split",
    most=1.455,
)
NETWORK_LOSS = Row(
    part="train",
    name="modern recipe, val loss of the network alone",
    unit="nats",
    note="the same without the counted n-grams",
    most=1.475,
)
MODERN_MEMORY = Row(
    part="train",
    name="modern recipe, memory",
    unit="MB",
    note="peak of the process; it includes n-gram tables and their moments, which nanoGPT does not have",
    least_ratio=1,
)
INT8_LOSS = Row(
    part="train",
    name="modern recipe, what --int8=True changes of the val loss",
    unit="nats",
    note="of the last weights; both by the command `eval`",
    most=0.001,
)
ROWS = (
    *(PREPARE, *ONE_SAMPLE.values(), *TEN_SAMPLES.values(), SAMPLING_MEMORY),
    *(TRAINING, STEP, LOSS, MEMORY, STEP_FAST, LOSS_FAST),
    *(SPRINT, SPRINT_PROCESS, SPRINT_LOSS, COUNTED_PROCESS, COUNTED_LOSS),
    *(MODERN, MODERN_LOSS, NETWORK_LOSS, MODERN_MEMORY, INT8_LOSS),
)
PARTS = tuple(dict.fromkeys(row.part for row in ROWS))
