"""All fuzz targets."""

from typing import Any

from fuzzing import checkpoint_targets, data_targets, import_targets, option_targets
from fuzzing.target import Target

TARGETS: list[type[Target[Any]]] = [
    checkpoint_targets.CheckpointBytes,
    checkpoint_targets.CheckpointHeader,
    checkpoint_targets.CheckpointMetadata,
    checkpoint_targets.CheckpointTensors,
    checkpoint_targets.RunFiles,
    checkpoint_targets.MetricsFile,
    checkpoint_targets.ConfigFile,
    data_targets.PreparedData,
    data_targets.Texts,
    data_targets.TokenizerJson,
    data_targets.TokenizerRoundTrip,
    import_targets.NanoGPTCheckpoint,
    import_targets.NanoGPTMeta,
    import_targets.HuggingFaceFolder,
    option_targets.OptionTexts,
    option_targets.OptionValues,
    option_targets.CommandLine,
    option_targets.Sampling,
]
