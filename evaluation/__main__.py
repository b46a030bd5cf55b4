# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""`python -m jvlm.evaluation` is `jvlm evaluate`."""

import sys

from .evaluate import main


if __name__ == "__main__":
    sys.exit(main())
