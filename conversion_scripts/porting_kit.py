# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Writes a folder for people who port the model to another framework: small checkpoints with random weights in the
published format and in Transformers' format, prompts and images that ports often get wrong, and the expected values of
every stage. `check_port`, of which the folder has a copy, compares a port with them.

    python -m jvlm.conversion_scripts.porting_kit --output porting_kit
"""

import json
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.utils import logging

from jvlm_cli.command_line import argument_parser, run

from ..configuration.configuration_jvlm import JinaVLMConfig
from ..modeling.modeling_jvlm import JinaVLMForConditionalGeneration
from ..processing.image_processing_jvlm import JinaVLMImageProcessor
from ..processing.processing_jvlm import JinaVLMProcessor
from ..processing.prompt_format import IMAGE_TOKENS, add_image_tokens
from ..published_format.published_schema import NUM_ADDITIONAL_TOKENS
from . import check_port
from .check_port import DTYPES, PROTOCOL, STAGES
from .checkpoint_folder import generation_config, is_published, local_folder
from .convert_release import convert_release
from .output_folder import new_folder
from .porting_cases import CASES, Case, write_images
from .porting_faults import wrong_values
from .porting_readme import kit_readme
from .reference_port import ReferencePort


MAX_NEW_TOKENS = 8
# Largest difference, relative to the root mean square of a stage. docs/porting.md says how they were chosen.
TOLERANCES = {"pixels": 1e-4, "features": 4e-4, "connector": 1e-3, "embeddings": 1e-3, "logits": 1e-3}
# Of a near tie, the larger logit is up to rounding. Greedy tokens are stored up to the first.
NEAR_TIE = 0.01
# Rows of the vocabulary before the image tokens, and the size of the small models.
FIRST_IMAGE_TOKEN = 512
VISION = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 10,
    "num_attention_heads": 2,
    "image_size": 378,
    "patch_size": 14,
}
TEXT = {
    "vocab_size": FIRST_IMAGE_TOKEN + NUM_ADDITIONAL_TOKENS,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
CONNECTOR = {"connector_num_attention_heads": 2, "connector_head_dim": 16, "connector_intermediate_size": 96}
# Of 10 blocks and a norm, the published `vit_layers` [-4, -10] are these blocks.
VISION_FEATURE_LAYER = [7, 1]
CORPUS = [
    " User: What is in this image? Assistant: A small red house stands near the river, and two boats lie before it.",
    " User: How many people are in the second image? Assistant: There are three people; one of them wears a hat.",
    " System: Answer in one short sentence. User: Which of the images is darker? Assistant: The first one is darker.",
    " User: Read the number on the sign, please! Assistant: It says 1234567890.",
]
LICENCE = "The weights are random. They are not those of `jinaai/jina-vlm` and answer nothing."


def build_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of Qwen's class with 512 tokens, image tokens after them, and Qwen's special tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=448, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trained.train_from_iterator(CORPUS * 5, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, padding_side="left", model_max_length=40960)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    add_image_tokens(tokenizer, FIRST_IMAGE_TOKEN)
    return tokenizer


def build_model(layout: str, tokenizer: PreTrainedTokenizerBase) -> JinaVLMForConditionalGeneration:
    """A small model of the real geometry whose random weights all matter: norms, biases and embeddings too."""
    ids = dict(zip(IMAGE_TOKENS, tokenizer.convert_tokens_to_ids(IMAGE_TOKENS), strict=True))
    end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    config = JinaVLMConfig(
        layout=layout,
        vision_config=dict(VISION),
        text_config={**TEXT, "bos_token_id": end[0], "eos_token_id": end, "pad_token_id": end[0]},
        vision_feature_layer=list(VISION_FEATURE_LAYER),
        image_token_id=ids["<im_patch>"],
        image_start_token_id=ids["<im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_column_token_id=ids["<im_col>"],
        **CONNECTOR,
    )
    model = JinaVLMForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_random(name, weight.shape, generator))
        model.lm_head.weight[FIRST_IMAGE_TOKEN:] = 0
    model.generation_config = generation_config(config, tokenizer)
    return model


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if "embed" in name and "patch" not in name:
        return values
    if len(shape) > 1:
        return values * shape[1:].numel() ** -0.5
    is_norm = name.endswith("weight")
    return 1 + 0.2 * values if is_norm else 0.2 * values


def write_checkpoints(folder: Path) -> dict[str, dict[str, Any]]:
    """Writes the small checkpoints; returns their entries of the index."""
    entries = {}
    for layout in ("stitched", "independent"):
        tokenizer = build_tokenizer()
        is_published = layout == "stitched"
        image_processor = JinaVLMImageProcessor(layout=layout, do_resize=is_published)
        processor = JinaVLMProcessor(image_processor, tokenizer, add_bos_token=is_published)
        build_model(layout, tokenizer).save_pretrained(folder / layout)
        processor.save_pretrained(folder / layout)
    with redirect_stdout(StringIO()):  # it lists the weights that it saves as zeros
        convert_release(folder / "stitched", folder / "published", reverse=True)
    _fill_unused_weights(folder / "published" / "model.safetensors")
    for name in ("published", "stitched", "independent"):
        (folder / name / "README.md").write_text(f"{LICENCE}\n", encoding="utf-8")
        entries[name] = {
            "folder": f"checkpoints/{name}",
            "golden": "independent" if name == "independent" else "stitched",
        }
    return entries


def _fill_unused_weights(file: Path) -> None:
    """Random values in place of zeros, so that a port that uses them does not go unnoticed."""
    weights, generator = load_file(file), torch.Generator().manual_seed(17)
    for name, weight in weights.items():
        if name.endswith("pad_embed"):
            weight[0] = torch.randn(weight[0].shape, generator=generator)
        elif not weight.any():
            weights[name] = _random(name, weight.shape, generator)
    save_file(weights, file, metadata={"format": "pt"})


def porting_kit(output: str | Path, checkpoint: str | Path | None = None, case: list[str] | None = None) -> Path:
    """
    Writes a porting kit.

    Args:
        output (`str` or `Path`): folder to create.
        checkpoint (`str` or `Path`, *optional*): folder or Hub id of a checkpoint to take expected values from, in
            place of the small ones. The kit refers to it; it is not copied.
        case (`list[str]`, *optional*): names of the cases, by default all.

    Returns:
        `Path`: `output`.

    Raises:
        ValueError: if the checkpoint cannot be loaded, or a case is unknown.
        FileExistsError: if `output` exists.
    """
    output, names = Path(output), [each.name for each in CASES]
    if unknown := [name for name in case or [] if name not in names]:
        raise ValueError(f"{unknown[0]!r} is no case; choose from {', '.join(names)}.")
    cases = [each for each in CASES if case is None or each.name in case]
    with new_folder(output) as folder:
        (folder / "images").mkdir()
        write_images(folder / "images")
        if checkpoint is None:
            checkpoints = write_checkpoints(folder / "checkpoints")
        else:
            local_folder(checkpoint)
            location = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else str(checkpoint)
            checkpoints = {"given": {"folder": location, "golden": "given"}}
        goldens = dict.fromkeys(entry["golden"] for entry in checkpoints.values())
        ports = {name: ReferencePort(_location(folder, checkpoints[name]["folder"])) for name in goldens}
        entries: list[dict[str, Any]] = [
            {"name": each.name, "description": each.description, "messages": each.messages, "golden": {}}
            | {"images": [f"images/{image}" for image in each.images]}
            for each in cases
        ]
        for name, port in ports.items():
            (folder / "golden" / name).mkdir(parents=True)
            for each, entry in zip(logging.tqdm(cases, desc=f"Expected values, {name}"), entries, strict=True):
                entry["golden"][name] = _write_golden(port, each, folder, f"golden/{name}/{each.name}.safetensors")
        for entry in checkpoints.values():
            entry.update(_describe(ports[entry["golden"]], _location(folder, entry["folder"])))
        index = {
            "protocol": PROTOCOL,
            "max_new_tokens": MAX_NEW_TOKENS,
            "tolerances": TOLERANCES,
            "checkpoints": checkpoints,
            "cases": entries,
        }
        text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
        (folder / "index.json").write_text(text, encoding="utf-8")
        shutil.copyfile(check_port.__file__, folder / "check_port.py")
        (folder / "README.md").write_text(kit_readme(index, DTYPES), encoding="utf-8")
    return output


def _location(folder: Path, checkpoint: str) -> Path | str:
    return folder / checkpoint if (folder / checkpoint).is_dir() else checkpoint


def _describe(port: ReferencePort, checkpoint: Path | str) -> dict[str, Any]:
    """What ports must know, and `check_port` for its hints."""
    tokenizer, config = port.processor.tokenizer, port.config
    bos_token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    end = port.model.generation_config.eos_token_id
    markers = IMAGE_TOKENS if config.layout == "stitched" else ["<im_patch>"]
    return {
        "format": "published" if is_published(local_folder(checkpoint)) else "transformers",
        "layout": config.layout,
        "pooled_grid": list(config.pooled_shape),
        "bos_token": bos_token if port.processor.add_bos_token else None,
        "end_tokens": end if isinstance(end, list) else [end],
        "cell_token": config.image_token_id,
        "image_tokens": {token: tokenizer.convert_tokens_to_ids(token) for token in markers if token != "<|image|>"},
    }


def _write_golden(port: ReferencePort, case: Case, folder: Path, file: str) -> dict[str, Any]:
    """Saves the expected values of a case; returns its entry of the index."""
    images = [str(folder / "images" / image) for image in case.images]
    request: dict[str, Any] = {"messages": case.messages, "images": images, "given": {}}
    request |= {"stages": STAGES[:-1], "max_new_tokens": MAX_NEW_TOKENS}
    values = dict(port.compute(request))
    prompt = values.pop("prompt")
    values["logits"] = _without_unused_rows(values["logits"])
    values["tokens"] = _clear_tokens(port, torch.from_numpy(values["embeddings"]))
    stages, tensors = {}, {}
    for stage, value in values.items():
        starts, steps = _sampling(stage, value.shape, stage in case.all_values)
        window = tuple(slice(start, None, step) for start, step in zip(starts, steps, strict=True))
        stages[stage] = {"shape": list(value.shape), "start": starts, "step": steps}
        tensors[stage] = np.ascontiguousarray(value[window])
        if stage in case.known_faults:
            for cause, wrong in wrong_values(port, stage, values, request):
                # A fault that changes nothing here would be taken for the cause of any small difference.
                if wrong.shape == value.shape and np.abs(wrong - value).max() > 100 * TOLERANCES[stage]:
                    tensors[f"{stage}: {cause}"] = np.ascontiguousarray(wrong[window])
    save_file({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, folder / file)
    return {"file": file, "prompt": prompt, "stages": stages}


def _sampling(stage: str, shape: tuple[int, ...], is_complete: bool) -> tuple[list[int], list[int]]:
    """First index and step along each axis of the values that are stored."""
    steps = [1] * len(shape)
    if stage == "pixels":
        # 25 has no common divisor with the 14 pixels of a patch, so all places within patches are hit. Nor has it with
        # 27: every 27th pixel of a thumbnail may lie exactly on a pixel of the image, where all filters agree.
        steps = [1, 1, 25, 25]
    elif stage in ("features", "connector", "embeddings") and not is_complete:
        steps[-1] = -(-shape[-1] // (2 if stage == "features" else 8))
    return [step // 2 for step in steps], steps


def _without_unused_rows(logits: np.ndarray) -> np.ndarray:
    used = np.flatnonzero(logits)  # rows of zeros belong to no token; the published head has none
    return logits[: used[-1] + 1]


@torch.inference_mode()
def _clear_tokens(port: ReferencePort, embeddings: torch.Tensor) -> np.ndarray:
    """The greedy tokens before the first near tie."""
    output = port.generate(embeddings, MAX_NEW_TOKENS)
    scores = torch.cat(output.scores)  # [tokens, vocabulary]
    best = scores.topk(2).values
    margins = (best[:, 0] - best[:, 1]) / scores[:, : port.config.image_start_token_id].std(dim=1)
    is_clear = (margins > NEAR_TIE).cummin(0).values
    return output.sequences[0][: int(is_clear.sum())].numpy()


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("porting_kit", __doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--checkpoint", metavar="ID", help="folder or Hub id to take the values from, for large models"
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="write only this case; can be given repeatedly"
    )
    print(run(parser, porting_kit, argv))


if __name__ == "__main__":
    main(sys.argv[1:])
