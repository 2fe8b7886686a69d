"""Options from a JSON file, for `--config`."""

import json
from pathlib import Path
from typing import Any

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.errors import UserError


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read options from a JSON file: an object of options, or a run's config.json (which has them under "config").

    Of a run of an earlier version, options that it did not have are as that version behaved.

    The names and values are not checked here. `UserError` if the file cannot be read or holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"config file {path} cannot be read ({error}); give a JSON object of options, "
            "for example a run's config.json"
        ) from error
    of_run = isinstance(content, dict) and "config" in content
    options = content["config"] if of_run else content
    if not isinstance(options, dict):
        raise UserError(f"config file {path} holds no JSON object; give one of options, like a run's config.json")
    absent = TrainConfig.absent_values(options)
    is_complete = of_run and None not in absent.values()  # an earlier version wrote it, which had fewer options
    return {**absent, **options} if is_complete else options
