# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""A Space on the Hub for a checkpoint: the web page of `jvlm demo`, and the code that it needs."""

import shutil
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import yaml

from ..configuration.configuration_jvlm import JinaVLMConfig
from .checkpoint_folder import CHECKPOINT_FILES, load_config, load_processor, local_folder
from .output_folder import new_folder


GRADIO_VERSION = "6.31.0"  # of the extra `page`; the Hub installs it
_APP = '''"""The web page of `jvlm demo`: an image, its tiles and a conversation about it."""

from pathlib import Path

from jvlm_cli.answering import Answerer
from jvlm_cli.web_page import web_page


answerer = Answerer({model})
answerer.name = {title!r}
page = web_page(answerer)

if __name__ == "__main__":
    page.launch()
'''
_README = """The web page of `jvlm demo`: choose an image, see its tiles as the model gets them, and ask questions
about it. `python app.py` opens it on your own machine.

The licence of the code is Apache-2.0. The weights keep the licence of their source.
"""
_CODE = {
    "jvlm": ("*.py", "configuration", "modeling", "processing", "published_format", "runtimes"),
    "jvlm_cli": ("*.py",),
}


def export_space(checkpoint: str | Path, output: str | Path, title: str, may_exist: bool = False) -> Path:
    """
    Writes the folder of a Space with the Gradio SDK. A checkpoint on the Hub is downloaded when the Space starts. A
    local one is copied into the folder.

    Args:
        checkpoint (`str` or `Path`): folder or Hub id of a checkpoint in either format.
        output (`str` or `Path`): folder to create.
        title (`str`): title of the Space and name of the model on the page.
        may_exist (`bool`, *optional*): whether `output` may exist if it holds the same files.

    Returns:
        `Path`: `output`.

    Raises:
        ValueError: if the checkpoint is damaged.
        OSError: if there is no such folder or repository.
        FileExistsError: if `output` exists.
    """
    source = local_folder(checkpoint) if Path(checkpoint).is_dir() else None
    if source is None:
        try:
            JinaVLMConfig.from_pretrained(checkpoint)  # a Space with a misspelt id would fail when it starts
        except OSError as error:
            raise OSError(f"{checkpoint} is neither a folder nor a repository that can be read: {error}") from error
    else:
        load_processor(source, load_config(source))
    with new_folder(output, may_exist=may_exist) as folder:
        for package, patterns in _CODE.items():
            [root] = map(Path, find_spec(package).submodule_search_locations)  # type: ignore[union-attr, arg-type]
            for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
                if path.is_dir():
                    shutil.copytree(path, folder / package / path.name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    (folder / package).mkdir(exist_ok=True)
                    shutil.copy(path, folder / package)
        model = repr(str(checkpoint))
        if source is not None:
            model = 'str(Path(__file__).with_name("model"))'
            _copy_checkpoint(source, folder / "model")
        (folder / "app.py").write_text(_APP.format(model=model, title=title), encoding="utf-8")
        base = [line for line in requires("jvlm") or [] if "extra ==" not in line]
        (folder / "requirements.txt").write_text("\n".join([*base, ""]), encoding="utf-8")
        settings: dict[str, str | list[str]] = {
            "title": title,
            "emoji": "🖼️",
            "sdk": "gradio",
            "sdk_version": GRADIO_VERSION,
            "app_file": "app.py",
            "python_version": "3.11",
        }
        if source is None:
            settings["models"] = [str(checkpoint)]
        card = f"---\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}---\n\n{_README}"
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(output)


def _copy_checkpoint(source: Path, target: Path) -> None:
    files = {file for pattern in CHECKPOINT_FILES for file in source.glob(pattern)}
    for file in sorted(files | set((source / "samples").glob("*"))):
        path = target / file.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)


__all__ = ["export_space"]
