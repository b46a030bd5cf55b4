# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The command `transformers` with JinaVLM's classes registered:

    python -m jvlm serve examples/digits/model
"""

import sys

from transformers.cli.transformers import main


if __name__ == "__main__":
    sys.exit(main())
