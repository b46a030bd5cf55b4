"""The JinaVLM model."""
