"""The JSON part of a checkpoint as a typed object, and its validation.

The file format is in `checkpoint_file`. The weights are validated in `validation`.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import TokenizerJson

SCALER_STATE_KEYS = ("scale", "_growth_tracker")  # of torch.amp.GradScaler: what changes in training
MAX_LOSS = 1e30  # the largest loss, sum of losses, or loss scale, in float32
MAX_COUNT = 2**63 - 1


class InvalidMetadataError(ValueError):
    """A checkpoint's metadata has a value that no training state has."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """All that a checkpoint stores beside tensors. In the JSON object each field has its name as key, but one."""

    config: TrainConfig  # without the options of one call
    device: str  # the device type: cpu, cuda, mps
    ranks: int
    tokenizer: TokenizerJson  # `Tokenizer.to_json()`
    dataset_sha256: str  # of the text; empty: not known
    scaler: dict[str, float]  # the state_dict of torch.amp.GradScaler; empty unless dtype is float16
    micro_batch: int  # rows in one forward pass, at most
    since_log: tuple[float, int]  # sum and number of the training losses since the last StepRecord
    since_eval: tuple[float, int]  # and since the last EvalRecord
    best_val_loss: float | None  # None before the first evaluation
    step: int  # completed steps
    last_eval_step: int  # its key is "evaluated"
    best_step: int
    evals_since_best: int

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the file stores."""
        content = {_json_key(field.name): getattr(self, field.name) for field in dataclasses.fields(self)}
        content["config"] = self.config.stored()
        return {**content, "since_log": list(self.since_log), "since_eval": list(self.since_eval)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The metadata in a JSON object. `InvalidMetadataError` if a key is missing, and as of `validate`."""
        keys = {field.name: _json_key(field.name) for field in dataclasses.fields(cls)}
        if missing := [key for key in keys.values() if key not in content]:
            raise InvalidMetadataError(f"it lacks {', '.join(missing)}")
        values = {name: content[key] for name, key in keys.items()}
        for name in ("since_log", "since_eval"):
            if type(values[name]) is not list or len(values[name]) != 2:
                raise InvalidMetadataError(f"{name} is not a pair of a sum and a count")
            values[name] = tuple(values[name])
        if type(values["config"]) is not dict:
            raise InvalidMetadataError("config is not a JSON object")
        try:
            values["config"] = TrainConfig.from_stored(values["config"])
        except UserError as error:
            raise InvalidMetadataError(f"its config: {error}") from error
        metadata = cls(**values)
        metadata.validate()
        return metadata

    def validate(self) -> None:
        """`InvalidMetadataError` if a field has a wrong type or an impossible value.

        The values of the config are checked by `TrainConfig`, those of the tokenizer by `tokenizer_from_json`.
        """
        if type(self.device) is not str:
            raise InvalidMetadataError("device is not a string")
        if type(self.dataset_sha256) is not str or not re.fullmatch("([0-9a-f]{64})?", self.dataset_sha256):
            raise InvalidMetadataError("dataset_sha256 is not a SHA-256")
        if type(self.scaler) is not dict or (self.scaler and not self.scaler.keys() >= {*SCALER_STATE_KEYS}):
            raise InvalidMetadataError("its loss scaler lacks a value")
        if self.scaler:
            scale, growth_tracker = (self.scaler[key] for key in SCALER_STATE_KEYS)
            valid_scale = type(scale) is float and 0 < scale < MAX_LOSS
            if not valid_scale or type(growth_tracker) is not int or not 0 <= growth_tracker < 2**31:
                raise InvalidMetadataError("its loss scaler has invalid values")
        (log_sum, log_count), (eval_sum, eval_count) = self.since_log, self.since_eval
        counters = (self.step, self.last_eval_step, self.best_step, self.evals_since_best)
        for count in (*counters, self.micro_batch, self.ranks, log_count, eval_count):
            if type(count) is not int or not 0 <= count <= MAX_COUNT:
                raise InvalidMetadataError(f"{count!r:.60} is not a valid count")
        if not self.micro_batch:
            raise InvalidMetadataError("micro_batch is 0")
        losses = (log_sum, eval_sum) if self.best_val_loss is None else (log_sum, eval_sum, self.best_val_loss)
        for loss in losses:
            if type(loss) is not float or not abs(loss) < MAX_LOSS:
                raise InvalidMetadataError(f"{loss!r:.60} is not a valid loss")


def _json_key(field_name: str) -> str:
    return "evaluated" if field_name == "last_eval_step" else field_name  # its name in version 0.1
