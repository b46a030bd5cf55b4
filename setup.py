# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Settings are in pyproject.toml. This file does what they cannot say:

- In checkouts without symbolic links, Git writes those of src/jvlm as text files. There the packages are those in the
  top-level folders that the links name.
- On a package index, relative links of README.md lead nowhere. They lead to `Repository` of the project's URLs, or
  become plain text where it is not set.
"""

import re
import tomllib
from pathlib import Path

from setuptools import Distribution, setup


class Unlinked(Distribution):
    """A distribution whose packages lie in the folders that the text files name."""

    def parse_config_files(self, *args, **kwargs):
        super().parse_config_files(*args, **kwargs)
        folders = {name: name.removeprefix("jvlm.") for name in self.packages}
        folders["jvlm.runtimes"] = "src/jvlm/runtimes"
        folders["jvlm.shipped_model"] = "examples/digits/model"
        self.package_dir = {**folders, "jvlm": "src/jvlm", "jvlm_cli": "src/jvlm_cli", "jvlm_vllm": "src/jvlm_vllm"}


def readme(root: Path) -> str:
    """README.md without relative links."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    link = rf"[\1]({urls['Repository']}/blob/main/\2)" if "Repository" in urls else r"\1"
    return re.sub(r"!?\[([^]]+)\]\((?!https?:)([^)]+)\)", link, (root / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    root = Path(__file__).parent
    linked = (root / "src" / "jvlm" / "modeling").is_dir()
    setup(
        distclass=Distribution if linked else Unlinked,
        long_description=readme(root),
        long_description_content_type="text/markdown",
    )
