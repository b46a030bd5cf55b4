# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""A web page that answers about images in the browser, with ONNX Runtime Web, and its comparison with PyTorch."""
