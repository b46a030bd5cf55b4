# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Model inputs for `generate`, as most callers of a processor need them."""

from typing import Any

from transformers import BatchFeature


def prompt_inputs(processor: Any, conversations: list, **kwargs) -> BatchFeature:
    """
    The inputs of `generate` for the next answer.

    Args:
        processor ([`JinaVLMProcessor`]): the processor.
        conversations (`list`): a conversation in the format of chat templates, or a list of them.
        **kwargs: arguments of a call of the processor, such as `padding` and `max_crops`.

    Raises:
        ValueError: as `processor.apply_chat_template` does.
    """
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=kwargs,
    )


__all__ = ["prompt_inputs"]
