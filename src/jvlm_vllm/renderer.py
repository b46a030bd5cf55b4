# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""From prompts to tokens, in vLLM."""

from vllm.renderers.hf import HfRenderer
from vllm.transformers_utils.processor import cached_processor_from_config


class JinaVLMRenderer(HfRenderer):
    """Starts prompts with the BOS token if the processor does (`add_bos_token`). Given token ids are not changed."""

    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self.processor = cached_processor_from_config(config.model_config)

    def _tokenize_prompt(self, prompt, params):
        return super()._tokenize_prompt({**prompt, "prompt": self.processor.with_bos_token(prompt["prompt"])}, params)
