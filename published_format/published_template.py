# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The chat template of the published checkpoint `jinaai/jina-vlm`, without and with marks around the answers."""

from typing import Any


_START = (
    "{%- for message in messages -%}"
    "{{- ' ' if (loop.index0 or always_start_with_space is not defined or always_start_with_space) else '' -}}"
)
_CONTENT = (
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
)
_END = "{%- endfor -%}{%- if add_generation_prompt -%}{{- ' Assistant:' -}}{%- endif -%}"
PUBLISHED_TEMPLATE = _START + "{{- message['role'].capitalize() + ': ' -}}" + _CONTENT + _END
# Writes the same text. An answer is what follows the colon, because a prompt ends with the colon.
MARKED_TEMPLATE = (
    _START
    + "{{- message['role'].capitalize() + ':' -}}"
    + "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- ' ' -}}"
    + _CONTENT
    + "{%- endgeneration -%}{%- else -%}{{- ' ' -}}"
    + _CONTENT
    + "{%- endif -%}"
    + _END
)


def read_template(template: Any) -> Any:
    """
    Adds the `{% generation %}` marks, which labels need, to the published chat template. Any other template is
    returned as it is.
    """
    return MARKED_TEMPLATE if isinstance(template, str) and template.strip() == PUBLISHED_TEMPLATE else template


def write_template(template: Any) -> Any:
    """The reverse of [`read_template`]."""
    return PUBLISHED_TEMPLATE if template == MARKED_TEMPLATE else template


__all__ = ["MARKED_TEMPLATE", "PUBLISHED_TEMPLATE", "read_template", "write_template"]
