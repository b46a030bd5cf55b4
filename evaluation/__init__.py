# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Evaluation by lmms-eval and lm-eval. `python -m jvlm.evaluation` runs the benchmarks of the paper; see
docs/evaluation.md. lmms-eval finds the model `jvlm` by an entry point, so importing this package is not needed.
"""
