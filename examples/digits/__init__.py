"""A small JinaVLM that reads pages of real handwritten digits."""
