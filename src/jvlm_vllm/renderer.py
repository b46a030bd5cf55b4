# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""From prompts to tokens, in vLLM."""

from vllm.renderers.hf import HfRenderer
from vllm.transformers_utils.processor import cached_processor_from_config


class JinaVLMRenderer(HfRenderer):
    """Checks and starts prompts as the processor does. Prompts that are token ids already are not changed."""

    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self.processor = cached_processor_from_config(config.model_config)

    def _tokenize_prompt(self, prompt, params):
        images = (prompt.get("multi_modal_data") or {}).get("image", [])
        self.processor.check_prompts([prompt["prompt"]], len(images) if isinstance(images, list) else 1)
        # vLLM leaves out the BOS token, which the chat template does not write.
        return super()._tokenize_prompt({**prompt, "prompt": self.processor.with_bos_token(prompt["prompt"])}, params)
