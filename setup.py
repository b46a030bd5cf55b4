# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Everything is in pyproject.toml. This file is for checkouts without symbolic links, where Git writes those of src/jvlm
as text files: there the packages are taken from the top-level folders that the links name.
"""

from pathlib import Path

from setuptools import Distribution, setup


class Unlinked(Distribution):
    """A distribution whose packages lie in the folders that the text files name."""

    def parse_config_files(self, *args, **kwargs):
        super().parse_config_files(*args, **kwargs)
        folders = {name: name.removeprefix("jvlm.") for name in self.packages}
        folders["jvlm.shipped_model"] = "examples/digits/model"
        self.package_dir = {**folders, "jvlm": "src/jvlm", "jvlm_cli": "src/jvlm_cli", "jvlm_vllm": "src/jvlm_vllm"}


if __name__ == "__main__":
    linked = Path(__file__).with_name("src").joinpath("jvlm", "modeling").is_dir()
    setup(distclass=Distribution if linked else Unlinked)
