# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Weights that Transformers could not load. Its own errors do not name them, and come after it allocated them."""

import re

from ..configuration.checkpoint_files import listed


def check_loaded_weights(model, load_config, loading_info) -> None:
    """
    Checks what Transformers found in the files of a checkpoint: see `LoadStateDictConfig` and `LoadStateDictInfo`.
    With `ignore_mismatched_sizes`, weights may be missing or have another shape.

    Raises:
        ValueError: if weights are missing, have another shape or cannot be converted; the message names them.
    """
    failed, missing, misshapen = set(), set(), set()
    for name, text in loading_info.conversion_errors.items():
        # Transformers keeps the traceback as text. Its last line has the reason.
        reasons = re.findall(r"^\S+Error: (.+)", text, re.MULTILINE)
        failed.add(f"{name} ({reasons[-1]})" if reasons else name)
    if not load_config.ignore_mismatched_sizes:
        missing = loading_info.missing_keys - model.all_tied_weights_keys.keys()
        misshapen = {f"{name} {[*found]} instead of {[*size]}" for name, found, size in loading_info.mismatched_keys}
    raise_for_weights(
        load_config.pretrained_model_name_or_path,
        {
            "holds weights that cannot be converted": failed,
            "holds weights of another shape": misshapen,
            "lacks weights": missing,
        },
    )


def raise_for_weights(checkpoint: str | None, problems: dict[str, set[str]]) -> None:
    """Raises `ValueError` for the first problem of a checkpoint that some weights have, with their names."""
    for problem, names in problems.items():
        if names:
            raise ValueError(
                f"{checkpoint} {problem}: {listed(names)}. Check that config.json and all other files are complete "
                "and belong together, or pass `output_loading_info=True` to load what there is."
            )


__all__ = ["check_loaded_weights", "raise_for_weights"]
