# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The benchmark stages. A stage is a function from a `Bench` to its records, which are JSON-serializable dicts."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, DynamicCache, TorchAoConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.utils import is_bitsandbytes_available, is_torchao_available, is_torchvision_available, logging

from examples.digits.evaluate import MODEL as DIGITS_MODEL
from examples.digits.evaluate import conversation
from examples.digits.pages import MAX_DIGITS, QUESTIONS, held_out_pages
from jvlm import JinaVLMImageProcessor
from jvlm.cache_argument import cache_argument
from jvlm.processing.prompt_inputs import prompt_inputs

from .conversion import measure as measure_in_new_process
from .cpu import BASELINE, WAYS, Clock, matrix_products
from .measure import Measurement, held_memory, measure
from .models import OTHERS, TEXT_TOKENS, Bench, random_image
from .training import ROW_LENGTHS, frozen_tower, kept_features, packed_and_padded


# Height and width of images, and the target ratio to SmolVLM's Pillow image processor.
IMAGES = {(512, 512): "≤ 1/6", (910, 1176): "≤ 1/6", (3000, 4000): "≤ 1/8"}
BATCHES = ((100, 100), (512, 512), (910, 1176))
NUM_TILES = 13  # thumbnail and 3 × 4 tiles
MIN_ROUNDS = 3  # of a ratio
NUM_PAGES = 24  # that answers are compared on, with five questions each
GREEDY = {"do_sample": False}
CACHE = cache_argument()


def record(
    case: str, name: str, measured: Measurement, baseline: Measurement | None = None, wanted: str = "", **values
) -> dict:
    """
    One line of the table. `ratios` are the time divided by that of the baseline, round by round, and `wanted` is the
    target of their median. There are none with fewer than three rounds, which say too little.
    """
    ratios = []
    if baseline is not None and min(len(measured.seconds), len(baseline.seconds)) >= MIN_ROUNDS:
        ratios = [one / other for one, other in zip(measured.seconds, baseline.seconds, strict=True)]
    return {
        "case": case,
        "name": name,
        "seconds": measured.seconds,
        "median": measured.median,
        "peak_memory": measured.peak_memory,
        "ratios": ratios,
        "wanted": wanted,
        **values,
    }


def compare(bench: Bench, case: str, functions: dict[str, Callable], wanted: str = "", rounds: int = 7) -> list[dict]:
    """Measures functions in turn. The last one is the baseline. `wanted` is the target ratio of the first one."""
    measured = measure(functions, bench.device, max_rounds=rounds, max_seconds=bench.max_seconds)
    *_, baseline = measured.values()
    return [
        record(case, name, each, None if each is baseline else baseline, wanted if index == 0 else "")
        for index, (name, each) in enumerate(measured.items())
    ]


def image_processing(bench: Bench) -> list[dict]:
    """Image processing against SmolVLM's Pillow image processor, always at the published tile size."""
    published = JinaVLMImageProcessor(layout="stitched", do_resize=True)
    processors = {
        "JinaVLM, published settings": published,
        "JinaVLM, antialiased": JinaVLMImageProcessor(antialias=True),
    }
    if is_torchvision_available():
        from transformers import Lfm2VlImageProcessor, Molmo2ImageProcessor, SmolVLMImageProcessor

        for image_processor in (SmolVLMImageProcessor, Molmo2ImageProcessor, Lfm2VlImageProcessor):
            processors[f"{image_processor.__name__}, torchvision"] = image_processor()
    processors["SmolVLM, Pillow"] = SmolVLMImageProcessorPil()
    records = []
    for (height, width), wanted in IMAGES.items():
        image = random_image(height, width)
        for kind, given in (("Pillow's", image), ("an array", np.asarray(image))):
            functions = {name: partial(process, given, return_tensors="pt") for name, process in processors.items()}
            records += compare(bench, f"{width} × {height}, {kind}", functions, wanted, rounds=25)
    for height, width in BATCHES:
        images = [random_image(height, width, seed) for seed in range(8)]
        functions = {
            "in one call": lambda images=images: published(images, return_tensors="pt"),
            "one by one": lambda images=images: torch.cat(
                [published(image, return_tensors="pt")["pixel_values"] for image in images]
            ),
        }
        records += compare(bench, f"8 images of {width} × {height}", functions, "< 1", rounds=25)
    return records


def merge_images(model, prompt: dict) -> torch.Tensor:
    """The image path of a `JinaVLMModel`: vision tower, connector, merging of features into the embeddings."""
    tiles = {name: prompt[name] for name in ("pixel_values", "image_token_positions")}
    features = torch.cat(model.get_image_features(**tiles).pooler_output)
    embeddings = model.get_input_embeddings()(prompt["input_ids"])
    mask = prompt["input_ids"] == model.config.image_token_id
    return embeddings.masked_scatter(mask.unsqueeze(-1), features.to(embeddings))


def vision(bench: Bench) -> list[dict]:
    """Vision tower, connector and merge, against the bare vision tower."""
    prompt, model, tower = bench.prompt(bench.tiles(NUM_TILES)), bench.model.model, bench.tower
    functions = {
        "tower, connector, merge": lambda: merge_images(model, prompt),
        "bare tower": lambda: tower(prompt["pixel_values"]).last_hidden_state,
    }
    return compare(bench, f"{NUM_TILES} tiles", functions, "≤ 1.05, memory ≤ 1.1")


def connector(bench: Bench) -> list[dict]:
    """Connector and merge alone: the image path with the output of the vision tower precomputed."""
    model, prompt, outputs = bench.model.model, bench.prompt(bench.tiles(NUM_TILES)), []
    tower = model.vision_tower
    hook = tower.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.inference_mode():
        merge_images(model, prompt)
    hook.remove()
    forward, tower.forward = tower.forward, lambda *args, **kwargs: outputs[0]
    try:
        measured = measure({"": lambda: merge_images(model, prompt)}, bench.device, max_seconds=bench.max_seconds)
    finally:
        tower.forward = forward
    return [record(f"{NUM_TILES} tiles", "connector, merge", measured[""])]


def prefill(bench: Bench) -> list[dict]:
    """The forward pass up to the logits of the first token, against bare vision tower plus bare decoder."""
    prompt, model, tower, decoder = bench.prompt(bench.tiles(NUM_TILES)), bench.model, bench.tower, bench.decoder
    embeddings = bench.embeddings(*prompt["input_ids"].shape)

    def bare():
        tower(prompt["pixel_values"])
        return decoder(inputs_embeds=embeddings, logits_to_keep=1, use_cache=True)

    functions = {
        "JinaVLM": lambda: model(**prompt, logits_to_keep=1, use_cache=True),
        "bare tower + bare Qwen3": bare,
    }
    case = f"{NUM_TILES} tiles and {TEXT_TOKENS} tokens of text, {embeddings.shape[1]} tokens in all"
    return compare(bench, case, functions, "≤ 1.03")


def decode(bench: Bench) -> list[dict]:
    """Generation after a long cached context, against `generate` of the bare decoder."""
    context, num_tokens, records = bench.prompt(bench.tiles(NUM_TILES))["input_ids"].shape[1], 16, []
    for batch_size in (1, 4):
        input_ids, cache = bench.text(context + 1, batch_size), DynamicCache(config=bench.config.text_config)
        text = bench.config.text_config
        for layer in range(text.num_hidden_layers):
            shape = (batch_size, text.num_key_value_heads, context, text.head_dim)
            cache.update(*(torch.randn(shape, dtype=bench.dtype, device=bench.device) for _ in range(2)), layer)

        def generate(model, input_ids=input_ids, cache=cache):
            length = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
            mask = torch.ones_like(input_ids)
            model.generate(input_ids, attention_mask=mask, **{CACHE: cache}, **GREEDY, **length)
            cache.crop(context - cache.get_seq_length())

        functions = {"JinaVLM": partial(generate, bench.model), "bare Qwen3": partial(generate, bench.decoder)}
        rows = compare(bench, f"batch {batch_size} after {context} tokens", functions, "≤ 1/0.98")
        records += [{**row, "tokens_per_second": batch_size * num_tokens / row["median"]} for row in rows]
    return records


def end_to_end(bench: Bench, other: str) -> list[dict]:
    """Time to the first token and tokens per second about an image of 3 × 4 tiles, against another model."""
    num_tokens = 16
    models = {"JinaVLM": (bench.model, bench.prompt(bench.tiles(NUM_TILES))), other: bench.other(other)}
    lengths = {name: inputs["input_ids"].shape[1] for name, (_, inputs) in models.items()}
    functions = {
        f"{name}, {lengths[name]} tokens": partial(generate_with, model, inputs, num_tokens)
        for name, (model, inputs) in models.items()
    }
    return compare_tokens(bench, functions)


def generate_with(model, inputs: dict, num_tokens: int) -> Clock:
    """Generates this number of tokens; the returned clock has their times."""
    clock = Clock()
    length = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    model.generate(**inputs, **GREEDY, **length, streamer=clock)
    return clock


def compare_tokens(bench: Bench, functions: dict[str, Callable[[], Clock]], what: str = "", **values) -> list[dict]:
    """Time to the first token and of later ones. The functions return clocks, and the last one is the baseline."""
    clocks: dict[str, list[Clock]] = {name: [] for name in functions}
    calls = {name: lambda name=name: clocks[name].append(functions[name]()) for name in functions}
    measured = measure(calls, bench.device, max_rounds=MIN_ROUNDS + 1, max_seconds=bench.max_seconds)
    *_, last = functions
    records = []
    for case, part in (("first token", "first"), ("a later token", "later")):
        times = {
            name: Measurement(
                [getattr(clock, part) for clock in clocks[name][-len(measured[name].seconds) :]],
                measured[name].peak_memory,
            )
            for name in functions
        }
        for name, each in times.items():
            baseline = None if name == last else times[last]
            records.append(record(f"{what}{case}", name, each, baseline, **values.get(name, {})))
    return records


def cpu_ways(bench: Bench) -> list[dict]:
    """Ways to run the model on a CPU, against float32, and how many answers of the shipped model are the same."""
    expected = answers(WAYS[BASELINE].load(DIGITS_MODEL))
    notes, models, prompt = {}, {}, bench.prompt(bench.tiles(NUM_TILES))
    # So that all ways fit into memory. What they quantize or reorder is their own.
    shared = Bench(bench.size, torch.float32, bench.device, share_weights=True)
    for name, way in logging.tqdm(WAYS.items(), desc="Ways"):
        with way.use():
            given = answers(way.load(DIGITS_MODEL))
        same = sum(one == other for one, other in zip(given, expected, strict=True))
        notes[name] = {"agreement": same / len(given), "like": BASELINE}
        models[name] = way.prepare(shared.random_model(bench.config, way.dtype))

    def run(name: str) -> Clock:
        way = WAYS[name]
        inputs = {key: value.to(way.dtype) if value.is_floating_point() else value for key, value in prompt.items()}
        with way.use():
            return generate_with(models[name], inputs, 8)

    functions = {name: partial(run, name) for name in WAYS}
    return compare_tokens(bench, functions, f"{NUM_TILES} tiles, ", **notes)


def image_path_and_products(bench: Bench) -> list[dict]:
    """The image path against its matrix products alone, which no arrangement of the other work can undercut."""
    prompt, model = bench.prompt(bench.tiles(NUM_TILES)), bench.model.model
    num_cells = int((prompt["image_token_positions"] >= 0).sum())
    functions = {
        "tower, connector, merge": lambda: merge_images(model, prompt),
        "matrix products alone": matrix_products(bench.config, NUM_TILES, num_cells, bench.dtype),
    }
    return compare(bench, f"{NUM_TILES} tiles", functions, "≤ 1.1")


def _load(folder: str, dtype: torch.dtype) -> None:
    _touch(AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).state_dict())


def _read(folder: str, dtype: torch.dtype) -> None:
    _touch({name: tensor.to(dtype) for name, tensor in load_file(f"{folder}/model.safetensors").items()})


def _touch(weights: dict[str, torch.Tensor]) -> None:
    """Reads one byte per page: memory-mapped weights are only read from the file on first access."""
    for weight in weights.values():
        weight.flatten().view(torch.uint8)[::4096].max()


def _drop_from_cache(file: str) -> None:
    """Drops a file from the page cache, if the system supports it, so that the next read comes from disk."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(bench: Bench) -> list[dict]:
    """`from_pretrained` of a single-file checkpoint against safetensors, each in a new process and read from disk."""
    measured = {"from_pretrained": Measurement(peak_memory=0), "safetensors": Measurement(peak_memory=0)}
    with tempfile.TemporaryDirectory() as folder:
        bench.model.save_pretrained(folder, max_shard_size="100GB")
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in bench.model.parameters())
        bench.forget()
        for _ in logging.tqdm(range(3), desc="Loading"):
            for measurement, function in zip(measured.values(), (_load, _read), strict=True):
                _drop_from_cache(f"{folder}/model.safetensors")
                seconds, peak = measure_in_new_process(function, folder, bench.dtype)
                measurement.seconds.append(seconds)
                measurement.peak_memory = max(measurement.peak_memory, peak)
    case, loaded, read = f"{num_bytes / 1e6:,.0f} MB", *measured.values()
    allowed = (num_bytes + 0.5e9) / 1e9
    return [
        record(case, "from_pretrained", loaded, read, f"≤ 1.2, memory ≤ {allowed:.2f} GB"),
        record(case, "safetensors", read),
    ]


def growth_tiles(bench: Bench) -> list[dict]:
    """The image path for growing numbers of tiles."""
    records = []
    for num_tiles in logging.tqdm((1, 2, 4, 7, 10, 13), desc="Tiles"):
        prompt = bench.prompt(bench.tiles(num_tiles))
        functions = {
            "tower, connector, merge": partial(merge_images, bench.model.model, prompt),
            "bare tower": partial(bench.tower, prompt["pixel_values"]),
        }
        records += bench.curve("tiles", num_tiles, compare(bench, f"{num_tiles} tiles", functions, rounds=3))
    return records


def growth_images(bench: Bench) -> list[dict]:
    """Prefill for growing numbers of images, each with a thumbnail and one tile."""
    records = []
    for num_images in logging.tqdm((1, 2, 4, 8), desc="Images"):
        prompt = bench.prompt(bench.tiles(2, num_images))
        functions = {"JinaVLM": partial(bench.model, **prompt, logits_to_keep=1)}
        records += bench.curve("images", num_images, compare(bench, f"{num_images} images", functions, rounds=3))
    return records


def growth_batch(bench: Bench) -> list[dict]:
    """Prefill for growing batch sizes, with one image of a thumbnail and one tile per sequence."""
    records = []
    for batch_size in logging.tqdm((1, 2, 4, 8), desc="Batch"):
        input_ids = bench.prompt(bench.tiles(2))["input_ids"].repeat(batch_size, 1)
        prompt = {"input_ids": input_ids, **bench.tiles(2, batch_size)}
        functions = {"JinaVLM": partial(bench.model, **prompt, logits_to_keep=1)}
        records += bench.curve("batch", batch_size, compare(bench, f"batch {batch_size}", functions, rounds=3))
    return records


def growth_text(bench: Bench) -> list[dict]:
    """Prefill for growing numbers of text tokens, without images."""
    records = []
    for length in logging.tqdm((128, 256, 512, 1024, 2048), desc="Text"):
        input_ids = bench.text(length)
        functions = {
            "JinaVLM": partial(bench.model, input_ids, logits_to_keep=1),
            "bare Qwen3": partial(bench.decoder, input_ids, logits_to_keep=1),
        }
        records += bench.curve("tokens of text", length, compare(bench, f"{length} tokens", functions, rounds=3))
    return records


def quantizations() -> dict:
    """Weight-only quantization configurations of the installed libraries, by name."""
    configs = {}
    if is_torchao_available():
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig

        configs["int8, torchao"] = TorchAoConfig(Int8WeightOnlyConfig())
        # On CPUs it packs two values per byte. It skips layers whose width is not a multiple of the group size.
        configs["int4, torchao"] = TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=32))
    if is_bitsandbytes_available():
        configs["int8, bitsandbytes"] = BitsAndBytesConfig(load_in_8bit=True)
        configs["nf4, bitsandbytes"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return configs


def answers(model) -> list[str]:
    """Greedy answers of the shipped model, loaded in some way, about held-out pages."""
    processor = AutoProcessor.from_pretrained(DIGITS_MODEL)
    texts = []
    for page in held_out_pages(NUM_PAGES):
        for question in QUESTIONS:
            inputs = prompt_inputs(processor, conversation(page.image, question)).to(model.device, model.dtype)
            output = model.generate(**inputs, **GREEDY, max_new_tokens=4 + 2 * MAX_DIGITS)
            texts.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def load_quantized(folder, config, device: str = "cpu"):
    """Loads a checkpoint in bfloat16, quantized by `config` unless it is `None`."""
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map=device
    ).eval()


def quantization(bench: Bench) -> list[dict]:
    """Weight-only quantization against bfloat16: speed, memory, and how many answers of the shipped model agree."""
    configs, records = quantizations(), []
    if not configs:
        raise RuntimeError("Neither torchao nor bitsandbytes is installed; run pip install 'jvlm[bench]'.")
    expected = answers(load_quantized(DIGITS_MODEL, None))
    with tempfile.TemporaryDirectory() as folder:
        bench.model.to(torch.bfloat16).save_pretrained(folder)
        bench.forget()
        before = held_memory(bench.device)
        plain = load_quantized(folder, None, str(bench.device))
        plain_memory = held_memory(bench.device) - before
        for name, config in logging.tqdm(configs.items(), desc="Quantizations"):
            before = held_memory(bench.device)
            model = load_quantized(folder, config, str(bench.device))
            memory = held_memory(bench.device) - before
            length = {"max_new_tokens": 16, "min_new_tokens": 16}
            functions = {
                each: partial(each_model.generate, bench.text(256), **GREEDY, **length)
                for each, each_model in ((name, model), ("bfloat16", plain))
            }
            rows = compare(bench, "256 tokens, 16 new ones", functions, rounds=3)
            given = answers(load_quantized(DIGITS_MODEL, config))
            same = sum(one == other for one, other in zip(given, expected, strict=True)) / len(given)
            rows[0] |= {"held_memory": memory, "agreement": same}
            rows[1] |= {"held_memory": plain_memory}
            records += rows
            del model
    return records


def training_packing(bench: Bench) -> list[dict]:
    """A training step with rows of different lengths, packed against padded."""
    rows = compare(bench, f"{len(ROW_LENGTHS)} rows of {sum(ROW_LENGTHS)} tokens", packed_and_padded(bench), "< 1")
    bench.forget()
    return rows


def training_frozen_tower(bench: Bench) -> list[dict]:
    """A training step with gradient checkpointing, without the backward pass of a frozen vision tower and with it."""
    rows = compare(bench, "4 tiles, gradient checkpointing", frozen_tower(bench), "< 1")
    bench.forget()
    return rows


def training_kept_features(bench: Bench) -> list[dict]:
    """A training step beside a frozen vision tower: with its features read from disk against running it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(bench, "5 tiles", kept_features(bench, Path(folder)), "< 1")
    bench.forget()
    return rows


STAGES: dict[str, Callable[[Bench], list[dict]]] = {
    "image_processing": image_processing,
    "vision": vision,
    "connector": connector,
    "prefill": prefill,
    "decode": decode,
    **{f"end_to_end_{name.lower().replace('-', '_')}": partial(end_to_end, other=name) for name in OTHERS},
    "loading": loading,
    "growth_tiles": growth_tiles,
    "growth_images": growth_images,
    "growth_batch": growth_batch,
    "growth_text": growth_text,
    "quantization": quantization,
    "cpu_ways": cpu_ways,
    "matrix_products": image_path_and_products,
    "training_packing": training_packing,
    "training_frozen_tower": training_frozen_tower,
    "training_kept_features": training_kept_features,
}
