# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The command `jvlm`. It lies outside the package `jvlm`, whose import takes seconds, so its help comes at once."""
