# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Checks that vLLM gives the same answers as Transformers. It exports checkpoints of both layouts and asks the same
questions of vLLM's Transformers backend, which runs the exported code, and of `generate`. Decoding is greedy and in
float32, with and without images. The script compares the token ids of prompts and answers. `make vllm` installs vLLM
and runs the script.

    python tools/vllm_check.py
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits" / "model"
MAX_NEW_TOKENS = 16


# Settings of vLLM that are not its defaults, or whose defaults differ from Transformers.
MODES: dict[str, dict[str, Any]] = {
    "layer by layer": {"enforce_eager": True},
    "compiled": {"enforce_eager": False},
    "two processes": {"enforce_eager": True, "tensor_parallel_size": 2},
}


def ask_vllm(folder: str, conversations: list[list[dict]], mode: str) -> list[list[dict]]:
    """Answers one by one, and again in one batch, when vLLM has cached the images and the prompts."""
    settings = MODES[mode]
    processes = settings.get("tensor_parallel_size", 1)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(processes > 1))
    if processes > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, sorted(os.sched_getaffinity(0))[:processes]))
    from vllm import LLM, SamplingParams

    model = LLM(
        model=folder,
        model_impl="transformers",
        trust_remote_code=True,
        dtype="float32",
        limit_mm_per_prompt={"image": 2},
        seed=0,
        **settings,
    )
    greedy = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)
    one_by_one = [model.chat([conversation], greedy, use_tqdm=False)[0] for conversation in conversations]
    at_once = model.chat(conversations, greedy, use_tqdm=False)
    if "jvlm" in sys.modules:
        raise RuntimeError("vLLM imported the installed package instead of the exported code.")
    return [
        [{"prompt": list(output.prompt_token_ids), "answer": list(output.outputs[0].token_ids)} for output in outputs]
        for outputs in (one_by_one, at_once)
    ]


def ask_transformers(folder: Path, conversations: list[list[dict]]) -> list[dict]:
    """The answers of the processor and `generate` of the package to the same conversations."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for conversation in conversations:
        messages = json.loads(json.dumps(conversation))
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image_url":
                part.update(type="image", url=part.pop("image_url")["url"])
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        prompt = inputs["input_ids"][0].tolist()
        answers.append({"prompt": prompt, "answer": output[0, len(prompt) :].tolist()})
    return answers


def random_stitched_checkpoint(folder: Path) -> Path:
    """A random model in the stitched layout, with a head size that vLLM supports on CPUs."""
    import torch
    from transformers import AutoConfig, AutoProcessor, set_seed

    from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMProcessor

    settings = AutoConfig.from_pretrained(DIGITS).to_dict()
    settings.update(layout="stitched", pooled_grid=None, use_last_tile_embedding=None, initializer_range=0.2)
    settings["text_config"]["initializer_range"] = 0.2
    set_seed(0)
    model = JinaVLMForConditionalGeneration(JinaVLMConfig(**settings))
    connector = model.model.connector
    assert connector.last_tile_embedding is not None, "The stitched layout has an embedding of the last tile."
    torch.nn.init.normal_(connector.last_tile_embedding)
    # As in the published checkpoint. vLLM does not suppress image tokens, so they must be improbable.
    model.lm_head.weight.data[min(model.config.suppressed_token_ids) :] = 0
    model.to(model.config.dtype).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(DIGITS)
    processor.image_processor.layout = "stitched"
    JinaVLMProcessor(processor.image_processor, processor.tokenizer, add_bos_token=True).save_pretrained(folder)
    return folder


def data_url(image) -> str:
    """An image as a data URL, for OpenAI's API."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user(question: str, *images) -> dict:
    """A user's message in the schema of OpenAI's API."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def conversations() -> list[list[dict]]:
    """Text alone, one image of one to twelve tiles, two images, and several turns."""
    from examples.digits.pages import COUNT, GRIDS, READ, held_out_pages

    pages = {page.grid: page.image for page in held_out_pages(len(GRIDS))}
    small, tall, wide, large = (pages[grid] for grid in ((1, 1), (3, 1), (1, 4), (3, 4)))
    answer = {"role": "assistant", "content": [{"type": "text", "text": "4 2"}]}
    return [
        [user("4 2 / 7 How many digits are there?")],
        *([user(READ, image)] for image in (small, tall, wide, large)),
        [user(READ, small, large)],
        [user(COUNT, wide, wide)],
        [user(READ, small), answer, user(COUNT)],
        [user(READ, tall), answer, user(COUNT, large)],
    ]


def compare(name: str, folder: Path, asked: list[list[dict]], expected: list[dict]) -> bool:
    """Asks vLLM in every mode, each in its own process that does not import the package, and prints the comparison."""
    equal = True
    for mode in MODES:
        job = folder.with_suffix(".job.json")
        result = folder.with_suffix(".answers.json")
        job.write_text(json.dumps({"folder": str(folder), "conversations": asked, "mode": mode}))
        finished = subprocess.run(
            [sys.executable, __file__, "--job", str(job), "--result", str(result)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder.parent,
        )
        if finished.returncode != 0:
            print(finished.stdout[-4000:], finished.stderr[-8000:], f"{name}, {mode}: vLLM failed", sep="\n")
            equal = False
            continue
        for how, found in zip(("one by one", "at once"), json.loads(result.read_text()), strict=True):
            same = [one == other for one, other in zip(expected, found, strict=True)]
            num_tokens = sum(len(one["answer"]) for one in expected)
            print(f"{name}, {mode}, {how}: {sum(same)} of {len(same)} answers equal, {num_tokens} tokens")
            for index, (one, other) in enumerate(zip(expected, found, strict=True)):
                for part in ("prompt", "answer"):
                    if one[part] != other[part]:
                        print(f"  {part} {index}\n    expected {one[part]}\n    found    {other[part]}")
            equal &= all(same)
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.job is not None:
        args.result.write_text(json.dumps(ask_vllm(**json.loads(args.job.read_text()))))
        return 0

    sys.path.insert(0, str(ROOT))
    from jvlm.conversion_scripts.export_to_hub import export_to_hub

    equal = True
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        sources = {"independent": DIGITS, "stitched": random_stitched_checkpoint(workspace / "source")}
        for name, source in sources.items():
            asked = conversations()
            folder = export_to_hub(source, workspace / name)
            equal &= compare(name, folder, asked, ask_transformers(source, asked))
    print("vLLM gives the same answers as Transformers" if equal else "vLLM gives other answers than Transformers")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
