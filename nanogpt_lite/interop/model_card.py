"""The model card of an exported model: README.md, as the Hugging Face hub shows it."""

from nanogpt_lite.checkpoint.metadata import CheckpointMetadata
from nanogpt_lite.config.options import TrainConfig


def model_card(metadata: CheckpointMetadata, config: TrainConfig, *, has_plot: bool) -> str:
    """A model card in Markdown: how to load the model, its training data and its options."""
    loss = metadata.best_val_loss
    rows = {
        "trained on": f"{config.dataset} (SHA-256 {metadata.dataset_sha256 or 'not known'})",
        "steps": metadata.step,
        "lowest val loss": "none yet" if loss is None else f"{loss:.4f} nats per token, at step {metadata.best_step}",
        **config.stored(),
    }
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", "", "# A small GPT", ""]
    lines += ["Trained by nanogpt_lite, exported for transformers:", ""]
    lines += ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += ['model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")']
    lines += [f"# context length: {config.block_size} tokens, prompt and answer together", "```"]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "![loss curves](loss.png)"] if has_plot else []
    return "\n".join([*lines, ""])
