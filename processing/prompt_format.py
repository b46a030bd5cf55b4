# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Prompt format: the image tokens of the vocabulary and the chat template of each layout."""

from transformers.tokenization_utils_base import PreTrainedTokenizerBase


IMAGE_PLACEHOLDER = "<|image|>"
# The tokens that replace a placeholder.
EXPANDED_IMAGE_TOKENS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>"]
IMAGE_TOKENS = [*EXPANDED_IMAGE_TOKENS, IMAGE_PLACEHOLDER]

# Each message starts with a space. There are no line breaks, and an answer ends with the EOS token. vLLM looks for the
# loops over `message['content']` to find out that contents are lists of parts.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- ' ' + message['role'].capitalize() + ':' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- ' ' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{{- eos_token -}}{%- endgeneration -%}"
    "{%- elif message['content'] is string -%}{{- ' ' + message['content'] -}}"
    "{%- else -%}{{- 'BEFORE_CONTENT' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- 'BEFORE_TEXT' + part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' Assistant:' -}}{%- endif -%}"
)
CHAT_TEMPLATES = {
    "independent": _CHAT_TEMPLATE.replace("BEFORE_CONTENT", "").replace("BEFORE_TEXT", " "),
    "stitched": _CHAT_TEMPLATE.replace("BEFORE_CONTENT", " ").replace("BEFORE_TEXT", ""),
}


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, first_token_id: int | None = None) -> int:
    """
    Adds missing image tokens to a tokenizer, in place, as special tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): any tokenizer of Transformers.
        first_token_id (`int`, *optional*): id of the first image token, `<im_start>`, 151936 in the published
            vocabulary. Filler tokens `|<EXTRA_TOKENS_i>|` take the unused ids below it. By default, the image tokens
            take the next free ids.

    Returns:
        `int`: number of added tokens, including fillers.

    Raises:
        ValueError: if `first_token_id` is already in use.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in IMAGE_TOKENS if token not in vocabulary]
    if missing and first_token_id is not None:
        if len(tokenizer) > first_token_id:
            raise ValueError(
                f"`first_token_id` is {first_token_id}, but the tokenizer has {len(tokenizer)} tokens already; "
                f"choose {len(tokenizer)} or more."
            )
        missing = [f"|<EXTRA_TOKENS_{i}>|" for i in range(first_token_id - len(tokenizer))] + missing
    return tokenizer.add_tokens(missing, special_tokens=True) if missing else 0


__all__ = ["CHAT_TEMPLATES", "EXPANDED_IMAGE_TOKENS", "IMAGE_PLACEHOLDER", "IMAGE_TOKENS", "add_image_tokens"]
