"""From pictures and prompts to model inputs."""
