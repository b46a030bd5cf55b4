# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What a prompt consists of: the image tokens of the vocabulary and the chat template of each layout."""

from transformers.tokenization_utils_base import PreTrainedTokenizerBase


IMAGE_PLACEHOLDER = "<|image|>"
IMAGE_TOKENS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", IMAGE_PLACEHOLDER]

# One leading space, no line breaks, nothing after "Assistant:"; an answer ends with the end-of-sequence token.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- ' ' + message['role'].capitalize() + ':' -}}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string "
    "else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- ' ' -}}{%- for part in parts -%}{{- part['text'] -}}{%- endfor -%}{{- eos_token -}}"
    "{%- endgeneration -%}"
    "{%- else -%}"
    "{{- 'BEFORE_CONTENT' -}}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- 'BEFORE_TEXT' + part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' Assistant:' -}}{%- endif -%}"
)
CHAT_TEMPLATES = {
    "independent": _CHAT_TEMPLATE.replace("BEFORE_CONTENT", "").replace("BEFORE_TEXT", " "),
    "stitched": _CHAT_TEMPLATE.replace("BEFORE_CONTENT", " ").replace("BEFORE_TEXT", ""),
}


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, first_token_id: int | None = None) -> int:
    """
    Adds the image tokens that a tokenizer lacks, in place, as special tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): any tokenizer of Transformers.
        first_token_id (`int`, *optional*): id of the first one, `<im_start>`; fillers `|<EXTRA_TOKENS_i>|` take the
            ids up to it, as in the published vocabulary (151936). By default no id is left out.

    Returns:
        `int`: how many tokens were added, fillers included.

    Raises:
        ValueError: if `first_token_id` is taken already.
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


__all__ = ["CHAT_TEMPLATES", "IMAGE_PLACEHOLDER", "IMAGE_TOKENS", "add_image_tokens"]
