# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Single changes of every file of a checkpoint, and rewrites of its files that change nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


# What was changed, and a function that changes a folder in place.
Change = tuple[str, Callable[[Path], None]]

# Settings that the files of a small checkpoint do not contain, with a value that is not the default.
ADDED_SETTINGS: dict[str, dict] = {
    "config.json": {
        "attn_implementation": "eager",
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": False,
        "transformers_weights": "adapter_model.bin",
        "dtype": "bfloat16",
        "unknown": 3,
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
        "unknown": 3,
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
            changes.append((f"{file.name}: deleted", lambda copy, name=file.name: (copy / name).unlink()))
    for name, content in ADDED_FILES.items():
        if not (folder / name).exists():
            changes.append((f"{name}: added", _written(name, content)))
    if not (folder / "model.safetensors").exists():
        changes.append(("model.safetensors: added", _add_single_file))
    return changes


def rewrites(folder: Path) -> list[Change]:
    """Changes without effect: order of keys, white space, layout of shards, files that Transformers does not read."""

    def reorder(copy: Path):
        for file in copy.glob("*.json"):
            # The order of these lists and of the vocabulary is part of the content.
            content = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(_reversed_keys(content), indent=7), encoding="utf-8")

    def in_one_file(copy: Path):
        _add_single_file(copy, factor=1)
        for file in copy.glob("model-*"):
            file.unlink()
        (copy / "model.safetensors.index.json").unlink(missing_ok=True)

    def in_other_shards(copy: Path):
        tensors = _all_weights(copy)
        in_one_file(copy)
        (copy / "model.safetensors").unlink()
        (copy / "parts").mkdir()
        files = {name: f"parts/{index % 3}.safetensors" for index, name in enumerate(sorted(tensors))}
        for file in set(files.values()):
            part = {name: tensors[name] for name in tensors if files[name] == file}
            save_file(part, copy / file, metadata={"format": "pt"})
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files, "metadata": {}}))

    def add_other_files(copy: Path):
        (copy / "notes.json").write_text("{damaged")
        (copy / "training_config.json").write_text("[]")
        (copy / "optimizer.safetensors").write_bytes(b"damaged")
        (copy / "old.jinja").write_bytes(b"\xff")
        (copy / "README.md").write_text("# Text")

    return [
        ("order of keys and white space", reorder),
        ("one file", in_one_file),
        ("other shards", in_other_shards),
        ("other files", add_other_files),
        ("transformers_version", _set_everywhere("transformers_version", "4.57.6")),
        ("_name_or_path", _set_everywhere("_name_or_path", "somebody/else")),
    ]


def _reversed_keys(value):
    if isinstance(value, dict):
        return {name: _reversed_keys(value[name]) for name in reversed(value)}
    return [_reversed_keys(part) for part in value] if isinstance(value, list) else value


def _set_everywhere(name: str, value: str) -> Callable[[Path], None]:
    def change(copy: Path):
        for file in (copy / "config.json", copy / "generation_config.json"):
            content = json.loads(file.read_text(encoding="utf-8")) | {name: value}
            file.write_text(json.dumps(content), encoding="utf-8")

    return change


def _written(name: str, text: str) -> Callable[[Path], None]:
    def change(copy: Path):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")

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


def _changed_json(file: Path) -> Iterator[Change]:
    content = json.loads(file.read_text(encoding="utf-8"))
    added = [{**content, name: value} for name, value in ADDED_SETTINGS.get(file.name, {}).items()]
    for other in [*_other_values(content), *added]:
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
        def change(copy: Path):
            tensors = load_file(copy / file.name)
            edit(tensors)
            save_file(tensors, copy / file.name, metadata={"format": "pt"})

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


def _all_weights(copy: Path) -> dict[str, torch.Tensor]:
    return {name: part for file in sorted(copy.glob("*.safetensors")) for name, part in load_file(file).items()}


def _add_single_file(copy: Path, factor: float = 2):
    """Transformers reads a single file rather than those of an index."""
    tensors = _all_weights(copy)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * factor
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
