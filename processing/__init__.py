"""From images and prompts to model inputs."""
