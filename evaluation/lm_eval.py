# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
`lm_eval` with JinaVLM's classes registered. It takes the same arguments:

    python -m jvlm.evaluation.lm_eval --model hf-multimodal --apply_chat_template \\
        --model_args pretrained=ID,dtype=bfloat16 --tasks ...

lm-eval loads the classes of Transformers only and has no entry point for others in 0.4.13. Without this program, it
loads folders that `jvlm export` wrote, with `trust_remote_code=True` in `--model_args`.

`--model jvlm` is `hf-multimodal` with an argument `max_crops`, and with the BOS token in prompts without images.
"""

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.hf_vlms import HFMultimodalLM

import jvlm  # noqa: F401 - registers the classes


@register_model("jvlm")
class JinaVLM(HFMultimodalLM):
    """
    lm-eval's `hf-multimodal` for JinaVLM.

    Args:
        pretrained (`str`): folder or Hub id of a checkpoint.
        max_crops (`int`, *optional*): maximum number of tiles of an image, by default that of the processor.
        kwargs: see `lm_eval.models.hf_vlms.HFMultimodalLM`.
    """

    def __init__(self, pretrained: str, max_crops: int | None = None, **kwargs):
        super().__init__(pretrained, **kwargs)
        if max_crops is not None:
            self.processor.image_processor.max_crops = max_crops

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The prompt, with the BOS token: text-only prompts go to the tokenizer, but the processor would add it."""
        return self.processor.with_bos_token(super().apply_chat_template(chat_history, add_generation_prompt))


if __name__ == "__main__":
    cli_evaluate()
