# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Single changes of every file of a checkpoint, and rewrites of its files that change nothing."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer


# What was changed, and a function that changes a folder in place.
Change = tuple[str, Callable[[Path], None]]

# Settings by path that the files of a small checkpoint do not contain, with a value that is not the default.
ADDED_SETTINGS: dict[str, dict] = {
    "config.json": {
        "attn_implementation": "eager",
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": False,
        "transformers_weights": "adapter_model.bin",
        "dtype": "bfloat16",
        "unknown": 3,
        "text_config.attn_implementation": "eager",
        "text_config.rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "text_config.use_sliding_window": True,
        "text_config.unknown": 3,
        "vision_config.attn_implementation": "eager",
        "vision_config.dtype": "bfloat16",
    },
    "generation_config.json": {
        "do_sample": True,
        "num_beams": 2,
        "repetition_penalty": 1.5,
        "max_new_tokens": 2,
        "use_cache": False,
        "bad_words_ids": [[7]],
        "forced_eos_token_id": 5,
        "cache_implementation": "static",
        "unknown": 3,
    },
    "processor_config.json": {
        "model_input_names": ["input_ids"],
        "chat_template": "{{ 'x' }}",
        "image_token": "x",
        "text_kwargs": {"padding_side": "right"},
        "images_kwargs": {"max_crops": 1},
        "unknown": 3,
        "image_processor.data_format": "channels_last",
        "image_processor.input_data_format": "channels_last",
        "image_processor.return_tensors": "np",
        "image_processor.device": "meta",
        "image_processor.pooled_grid": [3, 3],
        "image_processor.model_input_names": ["pixel_values"],
        "image_processor.unknown": 3,
    },
    "tokenizer_config.json": {
        "model_input_names": ["input_ids"],
        "padding_side": "right",
        "truncation_side": "left",
        "model_max_length": 5,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": True,
        "add_prefix_space": True,
        "add_bos_token": True,
        "add_eos_token": True,
        "bos_token": "!",
        "unk_token": "?",
        "extra_special_tokens": ["lady"],
        "image_token": "lady",
        "chat_template": "{{ 'x' }}",
        "tokenizer_class": "Qwen2TokenizerFast",
        "auto_map": {"AutoTokenizer": [None, "x.Y"]},
        "max_length": 60,
        "max_crops": 1,
        "do_resize": False,
        "unknown": 3,
    },
    "tokenizer.json": {
        "truncation": {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": 8},
            **{"pad_id": 3, "pad_type_id": 1, "pad_token": "$"},
        },
    },
}
ADDED_FILES = {
    "special_tokens_map.json": json.dumps({"bos_token": "!"}),
    "added_tokens.json": json.dumps({"zebra": 300}),
    "preprocessor_config.json": json.dumps({"image_processor_type": "JinaVLMImageProcessor", "max_crops": 3}),
    "chat_template.json": json.dumps({"chat_template": "{{ 'x' }}"}),
    "additional_chat_templates/brief.jinja": "{{ 'x' }}",
}


def all_changes(folder: Path) -> list[Change]:
    """Single changes of every file that Transformers reads, and files that it would read."""
    kinds = {
        ".safetensors": _changed_weights,
        ".jinja": _changed_template,
        ".json": _changed_json,
        ".py": _changed_code,
    }
    changes = []
    for file in sorted(folder.iterdir()):
        for kind, change in kinds[file.suffix](file) if file.suffix in kinds else ():
            changes.append((f"{file.name}: {kind}", change))
        if file.suffix in kinds:
            changes.append((f"{file.name}: deleted", lambda folder, name=file.name: (folder / name).unlink()))
    for name, content in ADDED_FILES.items():
        if not (folder / name).exists():
            changes.append((f"{name}: added", _written(name, content)))
    if not (folder / "model.safetensors").exists():
        changes.append(("model.safetensors: added", _add_single_file))
    return changes


def rewrites(folder: Path) -> list[Change]:
    """Changes without effect: order of keys, white space, layout of shards, files that Transformers does not read."""

    def reorder(folder: Path):
        for file in folder.glob("*.json"):
            # The order of these lists and of the vocabulary is part of the content.
            content = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(_reversed_keys(content), indent=7), encoding="utf-8")

    def in_one_file(folder: Path):
        _add_single_file(folder, factor=1)
        for file in folder.glob("model-*"):
            file.unlink()
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)

    def in_other_shards(folder: Path):
        tensors = _all_weights(folder)
        in_one_file(folder)
        (folder / "model.safetensors").unlink()
        (folder / "parts").mkdir()
        files = {name: f"parts/{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
        for file in set(files.values()):
            part = {name: tensors[name] for name in tensors if files[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files, "metadata": {}}))

    def save_after_a_call(folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer(["a", "b c d"], padding=True)
        tokenizer.save_pretrained(folder)

    def add_other_files(folder: Path):
        (folder / "notes.json").write_text("{damaged")
        (folder / "training_config.json").write_text("[]")
        (folder / "optimizer.safetensors").write_bytes(b"damaged")
        (folder / "old.jinja").write_bytes(b"\xff")
        (folder / "README.md").write_text("# Text")

    return [
        ("order of keys and white space", reorder),
        ("one file", in_one_file),
        ("other shards", in_other_shards),
        ("padding", save_after_a_call),
        ("other files", add_other_files),
        ("transformers_version", _set_everywhere("transformers_version", "4.57.6")),
        ("_name_or_path", _set_everywhere("_name_or_path", "somebody/else")),
        ("_from_model_config", _set_everywhere("_from_model_config", True)),
    ]


def _reversed_keys(value):
    if isinstance(value, dict):
        return {name: _reversed_keys(value[name]) for name in reversed(value)}
    return [_reversed_keys(part) for part in value] if isinstance(value, list) else value


def _set_everywhere(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path):
        for file in (folder / "config.json", folder / "generation_config.json"):
            content = json.loads(file.read_text(encoding="utf-8")) | {name: value}
            file.write_text(json.dumps(content), encoding="utf-8")

    return change


def _written(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return change


def _other_values(value) -> Iterator:
    """Values that differ in one place."""
    scalars = {bool: lambda: [not value], int: lambda: [value + 1], float: lambda: [value * 1.01 + 0.01]}
    scalars |= {str: lambda: [f"{value}x", value[1:]], type(None): lambda: [1, "x"]}
    if type(value) in scalars:
        yield from scalars[type(value)]()
    elif isinstance(value, list):
        yield from (value[:-1], value[::-1])
        for index in sorted({0, len(value) // 2, len(value) - 1}) if value else ():
            for other in _other_values(value[index]):
                yield [*value[:index], other, *value[index + 1 :]]
    else:
        names = list(value)
        for name in names if len(names) < 40 else names[:: len(names) // 4]:  # a vocabulary is long
            yield {key: part for key, part in value.items() if key != name}
            for other in _other_values(value[name]):
                yield {**value, name: other}


def _difference(before, after, path: str = "") -> str:
    """Where two JSON values differ, and the new value."""
    if isinstance(before, dict) and isinstance(after, dict):
        if missing := before.keys() - after.keys():
            return f"{path} without {', '.join(missing)}"
        name = next(name for name in after if name not in before or before[name] != after[name])
        return _difference(before.get(name), after[name], f"{path}.{name}")
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after) < 40:
        index = next(index for index in range(len(before)) if before[index] != after[index])
        return _difference(before[index], after[index], f"{path}[{index}]")
    return f"{path} {str(after)[:80]}"


def _with_added_settings(content: dict, settings: dict[str, Any]) -> Iterator[dict]:
    for path, value in settings.items():
        *parents, name = path.split(".")
        if all(parent in content for parent in parents):
            other = copy.deepcopy(content)
            part = other[parents[0]] if parents else other
            part[name] = value
            yield other


def _changed_json(file: Path) -> Iterator[Change]:
    content = json.loads(file.read_text(encoding="utf-8"))
    for other in [*_other_values(content), *_with_added_settings(content, ADDED_SETTINGS.get(file.name, {}))]:
        if other != content:
            yield _difference(content, other).removeprefix("."), _written(file.name, json.dumps(other))
    if "weight_map" in content:
        name = next(iter(content["weight_map"]))
        for target in ("../x.safetensors", "/x.safetensors", "pytorch_model.bin", 3, None):
            other = {**content, "weight_map": {**content["weight_map"], name: target}}
            yield f"{name} in {target}", _written(file.name, json.dumps(other))


def _changed_template(file: Path) -> Iterator[Change]:
    template = file.read_text(encoding="utf-8")
    condition = "{% if 'digit' in messages[-1]['content'][-1]['text'] %}Count. {% endif %}"
    edits = {
        "without marks": template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""),
        "condition on the text": condition + template,
        "condition on the role": "{%- if messages[0].role == 'tool' -%}x{%- endif -%}" + template,
        "space": template + " ",
        "generation prompt": template.replace(" Assistant:", " Assistant: "),
        "no end of answers": template.replace("{{- eos_token -}}", ""),
        "start": template[template.index("}}") + 2 :],
        "empty": "",
        "syntax": "{% if %}",
        "division": "{{ 1 / 0 }}" + template,
        "attribute": "{{ messages.x.y }}" + template,
    }
    for kind, edit in edits.items():
        if edit != template:
            yield kind, _written(file.name, edit)


def _changed_code(file: Path) -> Iterator[Change]:
    yield "statement", _written(file.name, file.read_text(encoding="utf-8") + "\nprint('x')\n")


def _changed_weights(file: Path) -> Iterator[Change]:
    """Flips the last bit of one value of each weight, and changes the whole file."""

    def edited(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
        def change(folder: Path):
            tensors = load_file(folder / file.name)
            edit(tensors)
            save_file(tensors, folder / file.name, metadata={"format": "pt"})

        return change

    def flip(name: str) -> Callable[[dict], None]:
        return lambda tensors: tensors[name].flatten().view(torch.uint8)[0].bitwise_xor_(1)

    tensors = load_file(file)
    for name in tensors:
        yield f"bit of {name}", edited(flip(name))
    first = next(iter(tensors))
    shape = list(tensors[first].shape)
    yield "scaled", edited(lambda tensors: [tensor.mul_(1.0001) for tensor in tensors.values()])
    yield "dtype", edited(lambda tensors: tensors.update({key: part.bfloat16() for key, part in tensors.items()}))
    yield "name", edited(lambda tensors: tensors.update({f"{first}x": tensors.pop(first)}))
    yield "shape", edited(lambda tensors: tensors.update({first: tensors[first].reshape(1, *shape)}))


def _all_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: part for file in sorted(folder.glob("*.safetensors")) for name, part in load_file(file).items()}


def _add_single_file(folder: Path, factor: float = 2):
    """Transformers reads a single file rather than those of an index."""
    tensors = _all_weights(folder)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
