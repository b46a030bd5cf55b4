# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The command `jvlm`, as `python -m jvlm`."""

import sys

from jvlm_cli.main import main


if __name__ == "__main__":
    sys.exit(main())
