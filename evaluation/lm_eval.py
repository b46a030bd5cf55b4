# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
`lm_eval` with JinaVLM's classes registered. It takes the same arguments:

    python -m jvlm.evaluation.lm_eval --model hf-multimodal --apply_chat_template \\
        --model_args pretrained=ID,dtype=bfloat16 --tasks ...

lm-eval loads the classes of Transformers only and has no entry point for others in 0.4.13. Without this program, it
loads folders that `jvlm export` wrote, with `trust_remote_code=True` in `--model_args`.
"""

from lm_eval.__main__ import cli_evaluate

import jvlm  # noqa: F401 - registers the classes


if __name__ == "__main__":
    cli_evaluate()
