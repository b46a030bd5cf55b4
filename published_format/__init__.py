"""The format of the published checkpoint `jinaai/jina-vlm` (weights CC BY-NC 4.0): settings and weights, both ways."""
