"""Configuration of JinaVLM."""
