# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Exports a checkpoint with its code to a folder, and uploads the folder on request. It loads with trust_remote_code=True
where `jvlm` is not installed. The code files are generated from the installed package.

    python -m jvlm.conversion_scripts.export_to_hub --checkpoint my-jina-vlm --output repository --push me/my-jina-vlm

With --space it writes a Space instead: the web page of `jvlm demo` for the checkpoint.
"""

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from jvlm_cli.command_line import argument_parser, run

from ..configuration.configuration_jvlm import JinaVLMConfig
from ..modeling.modeling_jvlm import JinaVLMForConditionalGeneration, JinaVLMModel
from ..processing.image_processing_jvlm import JinaVLMImageProcessor
from ..processing.processing_jvlm import JinaVLMProcessor
from .checkpoint_folder import (
    BOS_IN_TEMPLATE,
    MAX_SHARD_SIZE,
    edit_chat_template,
    generation_config,
    load_config,
    load_model,
    load_processor,
    local_folder,
)
from .export_space import export_space
from .model_card import write_model_card
from .output_folder import new_folder


CLASSES = {
    "AutoConfig": JinaVLMConfig,
    "AutoModel": JinaVLMModel,
    "AutoModelForCausalLM": JinaVLMForConditionalGeneration,
    "AutoModelForImageTextToText": JinaVLMForConditionalGeneration,
    "AutoModelForVision2Seq": JinaVLMForConditionalGeneration,
    "AutoImageProcessor": JinaVLMImageProcessor,
    "AutoProcessor": JinaVLMProcessor,
}
_RELATIVE_IMPORT = re.compile(r"^(\s*from )(\.+[\w.]+)(?= import )", flags=re.MULTILINE)


def export_to_hub(checkpoint: str | Path, output: str | Path, push: str | None = None, space: bool = False) -> Path:
    """
    Writes a self-contained folder of a model repository or a Space, and uploads it on request.

    Args:
        checkpoint (`str` or `Path`): folder or Hub id of a checkpoint in either format.
        output (`str` or `Path`): folder to create. With `push`, it may exist if it holds the same files, so that the
            upload can be repeated. Its model card is kept.
        push (`str`, *optional*): repository on the Hub to upload to. It is created if it does not exist.
        space (`bool`, *optional*): whether to write a Space, see [`export_space`].

    Returns:
        `Path`: `output`.

    Raises:
        ValueError: if the checkpoint is incomplete, damaged or inconsistent, or if `push` cannot be the name of a
            repository.
        FileExistsError: if `output` exists, and without `push` or with other files.
        OSError: if the upload fails. `output` is complete then, and the same call repeats the upload.
    """
    if push is not None:
        validate_repo_id(push)
    output = Path(output)
    if space:
        export_space(
            checkpoint, output, title=(push or output.resolve().name).split("/")[-1], may_exist=push is not None
        )
    else:
        _export_model(checkpoint, output, push)
    if push is not None:
        repo_type, sdk = ("space", "gradio") if space else (None, None)
        try:
            api = HfApi()
            repository = api.create_repo(push, exist_ok=True, repo_type=repo_type, space_sdk=sdk).repo_id
            api.upload_folder(
                repo_id=repository,
                repo_type=repo_type,
                folder_path=output,
                commit_message="Upload JinaVLM",
            )
        except Exception as error:  # those of the connection have no common class
            raise OSError(
                f"{output} is complete, but its upload to {push} failed ({error}). Repeat the same command to upload "
                "it again."
            ) from error
    return output


def _export_model(checkpoint: str | Path, output: Path, push: str | None) -> None:
    source = local_folder(checkpoint)
    processor = load_processor(source, load_config(source))
    if processor.add_bos_token:
        # Engines such as vLLM tokenize the output of the template, without the BOS token that the processor adds.
        edit_chat_template(processor, lambda template: BOS_IN_TEMPLATE + template)
    model = load_model(source)
    model.config.auto_map = _auto_map(lambda name: name == "AutoConfig" or name.startswith("AutoModel"))
    model.generation_config = generation_config(model.config, processor.tokenizer, source)
    num_bytes = model.num_parameters() * model.dtype.itemsize
    with new_folder(output, num_bytes, may_exist=push is not None) as folder:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        processor.save_pretrained(folder)
        _add_processor_auto_map(folder / "processor_config.json")
        for name, code in code_files().items():
            (folder / name).write_text(code, encoding="utf-8")
        licence = "The licence of the code is Apache-2.0. The weights keep the licence of their source."
        write_model_card(folder, source, push or output.name, "A JinaVLM with its own code.", licence)


def code_files() -> dict[str, str]:
    """
    The modules of the package that the classes need, for one folder.

    Returns:
        `dict[str, str]`: content by file name. Relative imports refer to files of the same folder.

    Raises:
        RuntimeError: if two modules have the same name.
    """
    pending, sources = [cls.__module__ for cls in CLASSES.values()], {}
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        sources[name] = inspect.getsource(importlib.import_module(name))
        package = name.rpartition(".")[0]
        pending += [
            importlib.util.resolve_name(match[2], package) for match in _RELATIVE_IMPORT.finditer(sources[name])
        ]
    files = {
        f"{_last(name)}.py": _RELATIVE_IMPORT.sub(lambda match: f"{match[1]}.{_last(match[2])}", source)
        for name, source in sorted(sources.items())
    }
    if len(files) != len(sources):
        raise RuntimeError(f"Two of the modules {', '.join(sources)} have the same name.")
    return files


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _auto_map(choose) -> dict[str, str]:
    return {name: f"{_last(cls.__module__)}.{cls.__name__}" for name, cls in CLASSES.items() if choose(name)}


def _add_processor_auto_map(path: Path) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["auto_map"] = _auto_map(lambda name: name.endswith("Processor"))
    settings["image_processor"]["auto_map"] = _auto_map(lambda name: name == "AutoImageProcessor")
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("jvlm export", __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="ID", help="folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--push", metavar="REPO_ID", help="repository on the Hub to upload the folder to")
    parser.add_argument("--space", action="store_true", help="write a Space with the web page of `jvlm demo`")
    print(f"Saved: {run(parser, export_to_hub, argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
