# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Measures time and memory of composing and converting full-size checkpoints with random weights:

    python -m benchmarks.conversion compose [--folder DIR]
    python -m benchmarks.conversion convert [--folder DIR]

`compose` needs 12 GB of disk space in DIR, `convert` 35 GB; all files are removed at the end. Anonymous memory is the
resident memory of a process without file pages, which the system can drop at any time. Requires Linux.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, SiglipConfig, SiglipModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from jvlm import JinaVLMConfig, JinaVLMImageProcessor, JinaVLMProcessor, add_image_tokens
from jvlm.configuration.configuration_jvlm import TEXT_DEFAULTS, VISION_DEFAULTS
from jvlm.conversion_scripts.checkpoint_folder import (
    empty_model,
    published_bias_shapes,
    to_published_weights,
    unused_published_shapes,
)
from jvlm.conversion_scripts.compose_from_pretrained import compose_from_pretrained
from jvlm.conversion_scripts.convert_release import convert_release
from jvlm.published_format.published_schema import write_config, write_image_processor, write_processor


TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "qwen3_tokenizer"
ALLOWED_BEYOND_OUTPUT = 1.5e9
# Size of Qwen3's embedding table; the image tokens follow it.
VOCABULARY = 151936
# Text tower of siglip2-so400m-patch14-384. The composed model uses neither it nor the pooling head.
TEXT_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "vocab_size": 256000,
    "projection_size": 1152,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


# Biases in the published format that Qwen3 lacks. They must be zero.
_ZERO = re.compile(r"language_model\..*\.[qkv]_b$")


def write_random_weights(folder: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype, shard_size: str) -> int:
    """Writes random values in the shapes of the given tensors, shard by shard. Returns the number of files."""
    tensors = {name: tensor.to("meta", dtype) for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_size)
    folder.mkdir(parents=True, exist_ok=True)
    for filename, names in logging.tqdm(split.filename_to_tensors.items(), desc=f"Making {folder.name}"):
        shard = {name: torch.zeros(tensors[name].shape, dtype=dtype) for name in names}
        for name, tensor in shard.items():
            if not _ZERO.search(name):
                tensor.uniform_(-0.03, 0.03)
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index))
    return len(split.filename_to_tensors)


def make_upstream(folder: Path) -> tuple[Path, Path]:
    """Writes random SigLIP2 so400m and Qwen3-1.7B checkpoints in bfloat16; embeddings are tied."""
    vision, decoder = folder / "siglip2", folder / "qwen3"
    with torch.device("meta"):
        siglip = SiglipModel(
            SiglipConfig(text_config=TEXT_TOWER, vision_config={**VISION_DEFAULTS, "vision_use_head": True})
        )
        text_config = {**TEXT_DEFAULTS, "vocab_size": VOCABULARY, "eos_token_id": 151643, "pad_token_id": None}
        qwen3 = Qwen3ForCausalLM(Qwen3Config(**text_config, tie_word_embeddings=True))
    siglip.config.vision_config.image_size = 384
    weights = qwen3.state_dict()
    del weights["lm_head.weight"]
    write_random_weights(vision, siglip.state_dict(), torch.bfloat16, "5GB")
    write_random_weights(decoder, weights, torch.bfloat16, "5GB")
    siglip.config.save_pretrained(vision)
    qwen3.config.save_pretrained(decoder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(decoder)
    return vision, decoder


def make_published(folder: Path) -> tuple[Path, int]:
    """Writes a random published checkpoint: float32, three files. Returns its folder and number of parameters."""
    config = JinaVLMConfig(layout="stitched")
    weights = to_published_weights(empty_model(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, shape in (unused_published_shapes(config, shapes) | published_bias_shapes(config)).items():
        weights[name] = torch.empty(shape, device="meta")
    checkpoint = folder / "published"
    assert write_random_weights(checkpoint, weights, torch.float32, "4GB") == 3
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    add_image_tokens(tokenizer, first_token_id=VOCABULARY)
    image_processor = JinaVLMImageProcessor(layout="stitched", do_resize=True)
    processor = JinaVLMProcessor(image_processor, tokenizer, add_bos_token=True)
    processor.save_pretrained(checkpoint)
    for name, content in (
        ("config.json", write_config(config)),
        ("preprocessor_config.json", write_image_processor(image_processor, config)),
        ("processor_config.json", write_processor(processor)),
    ):
        (checkpoint / name).write_text(json.dumps(content))
    return checkpoint, sum(tensor.numel() for tensor in weights.values())


def size(folder: Path) -> int:
    """Total size in bytes of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def forget_pages(folder: Path) -> None:
    """Drops the weight files of a folder from the page cache, so that the next read comes from disk."""
    os.sync()
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _timed(function: Callable, args: tuple, kwargs: dict, connection) -> None:
    start = time.perf_counter()
    function(*args, **kwargs)
    os.sync()
    connection.send(time.perf_counter() - start)


def measure(function: Callable, *args, **kwargs) -> tuple[float, int]:
    """Runs a function in a new process. Returns its seconds, with a sync to disk, and its peak anonymous bytes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(function, args, kwargs, sender))
    process.start()
    peak = 0
    while process.is_alive():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if "RssAnon" in line)])
        time.sleep(0.005)
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed with exit code {process.exitcode}; see its output above")
    return receiver.recv(), peak


def report(title: str, source: int, output: int, seconds: float, peak: int, copy_speed: float | None = None) -> None:
    print(f"{title}: {source / 1e9:.2f} GB -> {output / 1e9:.2f} GB in {seconds:.1f} s", flush=True)
    allowed = output + ALLOWED_BEYOND_OUTPUT
    print(f"  peak anonymous memory {peak / 1e9:.2f} GB, {allowed / 1e9:.2f} GB allowed", flush=True)
    if peak > allowed:
        raise SystemExit(f"peak memory is {(peak - allowed) / 1e9:.2f} GB above the limit")
    if copy_speed is not None:
        speed = (source + output) / seconds
        print(f"  {speed / 1e9:.2f} GB/s read and written, {speed / copy_speed:.0%} of plain file copying", flush=True)


def measure_copy(source: Path, target: Path) -> float:
    """Copies a folder. Returns the bytes read and written per second."""
    forget_pages(source)
    start = time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    speed = 2 * size(source) / seconds
    print(f"plain file copy: {size(source) / 1e9:.2f} GB in {seconds:.1f} s, {speed / 1e9:.2f} GB/s", flush=True)
    return speed


def compose(folder: Path) -> None:
    vision, decoder = make_upstream(folder)
    forget_pages(vision)
    forget_pages(decoder)
    output = folder / "composed"
    seconds, peak = measure(compose_from_pretrained, vision, decoder, output)
    report("compose_from_pretrained", size(vision) + size(decoder), size(output), seconds, peak)
    config, figure = JinaVLMConfig.from_pretrained(output).to_dict(), JinaVLMConfig().to_dict()
    volatile = {"architectures", "dtype", "transformers_version", "_name_or_path"}

    def without_volatile(value):
        if not isinstance(value, dict):
            return value
        return {name: without_volatile(entry) for name, entry in value.items() if name not in volatile}

    assert without_volatile(config) == without_volatile(figure), "the configuration differs from that of the figure"
    print("  configuration: that of the figure")


def convert(folder: Path) -> None:
    checkpoint, num_values = make_published(folder)
    print(f"published format: {num_values:,} parameters, float32, {len(list(checkpoint.glob('*.safetensors')))} files")
    copy_speed = measure_copy(checkpoint, folder / "copy")
    forget_pages(checkpoint)
    output = folder / "converted"
    seconds, peak = measure(convert_release, checkpoint, output, dtype="bfloat16")
    report("convert_release --dtype bfloat16", size(checkpoint), size(output), seconds, peak, copy_speed)
    forget_pages(output)
    back = folder / "back"
    seconds, peak = measure(convert_release, output, back, reverse=True)
    report("convert_release --reverse", size(output), size(back), seconds, peak, copy_speed)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compose", "convert"))
    parser.add_argument("--folder", metavar="DIR", help="working folder; default: the system's temporary folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        {"compose": compose, "convert": convert}[args.what](Path(folder))


if __name__ == "__main__":
    main()
