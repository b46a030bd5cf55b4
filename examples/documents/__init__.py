"""A small JinaVLM that reads pages of handwritten digits."""
