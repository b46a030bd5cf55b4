# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Checks that vLLM answers as `generate` does, with nothing but this package installed beside it. `make vllm` installs
vLLM and runs it. Decoding is greedy and in float32; token ids of prompts and answers are compared. It prints the
tables of docs/serving.md and exits with 1 if an answer differs or a fault of vLLM does not show any more.

    python tools/vllm_check.py
    python tools/vllm_check.py --write          also puts the tables into docs/serving.md
    python tools/vllm_check.py --only faults    or: answers, independent, published

Every configuration of vLLM runs in a process of its own, because vLLM keeps settings in global variables.
"""

import argparse
import base64
import gc
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image


ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits" / "model"
PUBLISHED = ROOT / "tests" / "fixtures" / "release_tiny" / "checkpoint"
MAX_NEW_TOKENS = 16
MAX_LENGTH = 1024  # of prompt and answer
LONG = 4096  # that of the published layout, which has larger tiles
MAX_CROPS = (1, 2, 4, 6, 12)
SECONDS = 3600  # for all modes of a layout, on a busy machine; usually one minute

# Settings of vLLM that differ from its defaults, by the column of the table. All but the last run in one process.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "image limit": {"limit_mm_per_prompt": {"image": 1}},
    "LoRA": {"enable_lora": True, "max_lora_rank": 8},
    "compiled": {"enforce_eager": False},
    "tensor parallel": {"tensor_parallel_size": 2},
}
EXPORTED = {"model_impl": "transformers", "trust_remote_code": True}
COLUMNS = ("plain", "compiled", "LoRA", "tensor parallel", "streaming", "prefix cache", "image limit", "over-long")
NO_PLUGIN = "exported folder, without the package"


def start(folder: str, **settings: Any):
    """A model in vLLM."""
    from vllm import LLM

    defaults = {"dtype": "float32", "enforce_eager": True, "seed": 0, "max_model_len": MAX_LENGTH}
    return LLM(model=folder, **{**defaults, **settings})


def ask(model, conversations: list[list[dict]], **kwargs: Any) -> list[dict]:
    """Prompts and answers to conversations, as one batch."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)
    outputs = model.chat(conversations, greedy, use_tqdm=False, **kwargs)
    return [
        {"prompt": list(output.prompt_token_ids), "answer": list(output.outputs[0].token_ids)} for output in outputs
    ]


def refusal(function: Callable, *args: Any, **kwargs: Any) -> str:
    """The text of the error that a call raises; empty without one."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


# In processes of vLLM


def run_answers(job: dict) -> dict[str, dict[str, Any]]:
    """Everything that vLLM answers in each of the modes."""
    results = {}
    for mode in job["modes"]:
        results[mode] = _run_mode(mode, job)
        gc.collect()
    if NO_PLUGIN in job["modes"] and "jvlm" in sys.modules:
        raise RuntimeError("vLLM imported the installed package instead of the exported code.")
    return results


def _run_mode(mode: str, job: dict) -> dict[str, Any]:
    asked = job["conversations"]
    model = start(job["folder"], **{"max_model_len": job["max_length"], **MODES.get(mode, EXPORTED)})
    if mode == "image limit":
        return {"refused": refusal(ask, model, [job["two images"]])}
    result: dict[str, Any] = {"one by one": [ask(model, [conversation])[0] for conversation in asked]}
    result["at once"] = ask(model, asked)
    if mode == "plain":
        result["cached tokens"] = [output.num_cached_tokens for output in model.chat(asked, use_tqdm=False)]
        result["special"] = [
            ask(model, [conversation], mm_processor_kwargs=kwargs)[0] for conversation, kwargs in job["special"]
        ]
        result["refused"] = [
            refusal(ask, model, [conversation], mm_processor_kwargs=kwargs) for conversation, kwargs, _ in job["wrong"]
        ]
        result["over-long"] = refusal(ask, model, [job["over-long"]])
    if mode == "LoRA":
        from vllm.lora.request import LoRARequest

        adapter = LoRARequest("language model", 1, job["adapters"]["language_model"])
        result["adapter"] = ask(model, asked, lora_request=adapter)
        # As the server does. A request with an adapter that cannot be loaded would stay in the engine.
        result["refused adapters"] = [
            refusal(model.llm_engine.add_lora, LoRARequest(part, index, job["adapters"][part]))
            for index, part in enumerate(("connector", "vision_tower"), 2)
        ]
        result["after adapters"] = ask(model, asked)
    return result


def fault_cache_drift(job: dict) -> None:
    model = start(job["folder"])
    refusal(ask, model, [job["over-long"]])  # its images are noted as sent, but are not
    ask(model, [job["conversation"]])


def fault_image_embeds(job: dict) -> None:
    import torch

    model = start(job["folder"], enable_mm_embeds=True)
    image = torch.tensor(job["features"])[None]  # [images, image tokens, hidden size]
    model.generate([{"prompt": job["prompt"], "multi_modal_data": {"image": image}}], use_tqdm=False)


def fault_encoder_only(job: dict) -> None:
    start(job["folder"], mm_encoder_only=True)


def fault_fp8(job: dict) -> None:
    ask(start(job["folder"], dtype="bfloat16", quantization="fp8"), [job["conversation"]])


def fault_pipeline_parallel(job: dict) -> None:
    ask(start(job["folder"], pipeline_parallel_size=2), [job["conversation"]])


# Faults of vLLM that a user of this model meets: what shows them, and what to do. The last one needs two processes.
FAULTS: dict[str, tuple[Callable[[dict], None], str]] = {
    "a request fails with status 500 if its image was part of a refused request before, or of a concurrent one": (
        fault_cache_drift,
        "repeat the request, as OpenAI's client does, or start with `--mm-processor-cache-gb 0`",
    ),
    "`image_embeds`, image features in a request": (fault_image_embeds, "send images"),
    "`--mm-encoder-only`": (fault_encoder_only, "none"),
    "`--quantization fp8` on CPUs": (fault_fp8, "none; GPUs have the kernel that is missing"),
    "`--pipeline-parallel-size 2` on CPUs": (fault_pipeline_parallel, "`--tensor-parallel-size`"),
}


def run_faults(job: dict) -> dict[str, str]:
    """The error of every fault of a job; empty if it does not show."""
    texts = {}
    for name in job["faults"]:
        texts[name] = refusal(FAULTS[name][0], job)
        gc.collect()
    return texts


# In the main process


def in_process(function: str, job: dict, folder: Path, plugin: bool = True, processes: int = 1) -> Any:
    """
    What a function of this module returns for a job, in a process of its own.

    Raises:
        RuntimeError: if the process ends with an error; the text has the end of its output.
    """
    request, result = folder / "job.json", folder / "result.json"
    request.write_text(json.dumps({"function": function, "job": job}))
    result.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes > 1)),
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if not plugin:
        environment["VLLM_PLUGINS"] = ""
    command = [sys.executable, str(Path(__file__).resolve()), "--job", str(request), "--result", str(result)]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no end after {SECONDS} seconds") from error
    if not result.exists():
        raise RuntimeError((finished.stdout + finished.stderr)[-6000:])
    return json.loads(result.read_text())


def ask_transformers(folder: Path, conversations: list[tuple[list[dict], dict]], edit=None) -> list[dict]:
    """Prompts of the processor and answers of `generate`. `edit` changes the model first."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import jvlm  # noqa: F401 - registers the classes

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    if edit is not None:
        edit(model)
    answers = []
    for conversation, kwargs in conversations:
        messages = json.loads(json.dumps(conversation))
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image_url":
                part.update(type="image", url=part.pop("image_url")["url"])
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=kwargs,
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        prompt = inputs["input_ids"][0].tolist()
        answers.append({"prompt": prompt, "answer": output[0, len(prompt) :].tolist()})
    return answers


def random_model(folder: Path, source: Path, **settings: Any) -> Path:
    """A random model in the stitched layout with the settings and the processor of a checkpoint, and a BOS token."""
    import torch
    from transformers import AutoConfig, AutoProcessor, set_seed

    import jvlm

    values = {**AutoConfig.from_pretrained(source).to_dict(), "initializer_range": 0.2, **settings}
    # vLLM supports heads of 32 on CPUs, and not those of 16 of the fixture.
    values["text_config"] = {**values["text_config"], "initializer_range": 0.2, "head_dim": 32}
    set_seed(0)
    model = jvlm.JinaVLMForConditionalGeneration(jvlm.JinaVLMConfig(**values))
    assert model.model.connector.last_tile_embedding is not None, "The stitched layout has this embedding."
    torch.nn.init.normal_(model.model.connector.last_tile_embedding)
    # As in the published checkpoint: the head has no rows for image tokens.
    model.lm_head.weight.data[min(model.config.suppressed_token_ids) :] = 0
    model.to(model.config.dtype).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(source)
    processor.image_processor.layout = "stitched"
    jvlm.JinaVLMProcessor(processor.image_processor, processor.tokenizer, add_bos_token=True).save_pretrained(folder)
    return folder


def adapters(folder: Path, workspace: Path) -> dict[str, str]:
    """Folders of random LoRA adapters in PEFT's format, by the part of the model that they change."""
    import torch
    from safetensors.torch import save_file

    from jvlm.conversion_scripts.checkpoint_folder import empty_model, load_config

    generator = torch.Generator().manual_seed(0)
    weights = dict(empty_model(load_config(folder)).named_parameters())
    saved = {}
    for part in ("language_model", "connector", "vision_tower"):
        pattern = re.compile(rf"model\.{part}\..*\.(\w+_proj)\.weight")
        tensors, targets = {}, set()
        for name, weight in weights.items():
            if match := pattern.fullmatch(name):
                targets.add(match[1])
                rows, cols = weight.shape
                prefix = f"base_model.model.{name.removesuffix('.weight')}"
                tensors[f"{prefix}.lora_A.weight"] = 0.1 * torch.randn(8, cols, generator=generator)
                tensors[f"{prefix}.lora_B.weight"] = 0.1 * torch.randn(rows, 8, generator=generator)
        adapter = workspace / f"{folder.name}-{part}"
        adapter.mkdir()
        save_file(tensors, adapter / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": sorted(targets), "bias": "none"}
        (adapter / "adapter_config.json").write_text(json.dumps({**settings, "task_type": "CAUSAL_LM"}))
        saved[part] = str(adapter)
    return saved


def merge(adapter: str) -> Callable:
    """A function that adds an adapter to the weights of a model."""
    from safetensors.torch import load_file

    def edit(model) -> None:
        tensors = load_file(Path(adapter) / "adapter_model.safetensors")
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                up = tensors[name.replace("lora_A", "lora_B")]
                target = name.removeprefix("base_model.model.").replace("lora_A.", "")
                model.get_parameter(target).data += up @ down

    return edit


def data_url(image: PIL.Image.Image) -> str:
    """An image as a data URL, for OpenAI's API."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user(question: str, *images: PIL.Image.Image) -> dict:
    """A user's message in the schema of OpenAI's API."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def conversations(sizes: list[tuple[int, int]]) -> list[list[dict]]:
    """Text alone, one image of one to twelve tiles, two images, and several turns; `sizes` of four images."""
    from examples.digits.pages import COUNT, GRIDS, READ, held_out_pages

    pages: dict[Any, Any] = {page.grid: page.image for page in held_out_pages(len(GRIDS))}
    small, tall, wide, large = (
        pages[grid].resize(size[::-1]) for grid, size in zip(((1, 1), (3, 1), (1, 4), (3, 4)), sizes, strict=True)
    )
    answer = {"role": "assistant", "content": [{"type": "text", "text": "4 2"}]}
    return [
        [user("4 2 / 7 How many digits are there?")],
        *([user(READ, image)] for image in (large, small, tall, wide)),
        [user(READ, small, large)],
        [user(COUNT, wide, wide)],
        [user(READ, small), answer, user(COUNT)],
        [user(READ, tall), answer, user(COUNT, large)],
    ]


def image_of(conversation: list[dict]) -> PIL.Image.Image:
    url = conversation[0]["content"][0]["image_url"]["url"]
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def special(conversation: list[dict]) -> list[tuple[list[dict], dict]]:
    """A conversation about one image with other `max_crops`, and about that image in other modes."""
    import numpy as np

    image, question = image_of(conversation), conversation[0]["content"][1]["text"]
    transparent = image.convert("RGBA")
    transparent.putalpha(image.convert("L").point(lambda value: 255 - value))
    deep = PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    modes = (transparent, image.convert("LA"), deep, image.convert("P"), image.convert("1"))
    return [
        *((conversation, {"max_crops": count}) for count in MAX_CROPS),
        *(([user(question, each)], {}) for each in modes),
    ]


def wrong(conversation: list[dict]) -> list[tuple[list[dict], dict, str]]:
    """Requests that cannot be answered, with a part of the error."""
    return [
        ([user("<im_patch> 4 2")], {}, "reserved"),
        ([user("<|image|> 4 2")], {}, "no images"),
        (conversation, {"max_crops": 0}, "`max_crops` must be an integer from 1"),
        (conversation, {"max_cropz": 2}, "did you mean `max_crops`"),
        (conversation, {"overlap_margins": [0, 0]}, "one size, overlap and layout"),
    ]


class Report:
    """Comparisons, and the cells of the table."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}
        self.is_equal = True

    def compare(self, layout: str, column: str, what: str, expected: list, found: list) -> None:
        """Notes how many answers are equal."""
        same = [one == other for one, other in zip(expected, found, strict=True)]
        print(f"{layout}, {what}: {sum(same)} of {len(same)} equal", flush=True)
        for index in (index for index, equal in enumerate(same) if not equal):
            print(f"  {index} expected {str(expected[index])[-300:]}\n    found    {str(found[index])[-300:]}")
        self.is_equal &= all(same)
        equal, total = (int(part) for part in self.cells.get((layout, column), "0 of 0").split(" of "))
        self.cells[layout, column] = f"{equal + sum(same)} of {total + len(same)}"

    def refuses(self, layout: str, column: str, text: str, part: str) -> None:
        """Notes whether a request was refused with a text that has this part."""
        print(f"{layout}, {column}: {text[:200] or 'not refused'}", flush=True)
        self.compare(layout, column, f"refused with {part!r}", [True], [part in text])

    def table(self, names: list[str]) -> str:
        rows = [["layout", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
        rows += [[name, *(self.cells.get((name, column), "–") for column in COLUMNS)] for name in names]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def questions(layout: str, folder: Path) -> dict[str, Any]:
    """What a layout is asked: conversations, special and wrong requests, and one that is too long."""
    from transformers import AutoProcessor

    import jvlm  # noqa: F401 - registers the classes

    sizes = [(300, 300), (910, 378), (378, 1176), (868, 1134)]
    asked = conversations(sizes if layout == "published" else [(60, 60), (140, 50), (50, 180), (130, 170)])
    max_length = LONG if layout == "published" else MAX_LENGTH
    about_large = asked[1]
    inputs = AutoProcessor.from_pretrained(folder)(text="<|image|>", images=image_of(about_large))
    image_part, text_part = about_large[0]["content"]
    content = [image_part] * (max_length // len(inputs["input_ids"][0]) + 1) + [text_part]
    over_long = [{"role": "user", "content": content}]
    return {
        **{"conversations": asked, "over-long": over_long, "max_length": max_length},
        **{"special": special(about_large), "wrong": wrong(about_large)},
    }


def check_modes(layout: str, folder: Path, asked: dict[str, Any], workspace: Path, report: Report) -> list[dict]:
    """Compares the answers of every configuration of vLLM; returns the expected ones."""
    saved = adapters(folder, workspace)
    plain: list[tuple[list[dict], dict]] = [(conversation, {}) for conversation in asked["conversations"]]
    expected = ask_transformers(folder, plain)
    job = {"folder": str(folder), "adapters": saved, "two images": asked["conversations"][5], **asked}
    *modes, last = MODES
    found = in_process("run_answers", {**job, "modes": modes}, workspace)
    found |= in_process("run_answers", {**job, "modes": [last]}, workspace, processes=2)
    for mode in (mode for mode in MODES if mode != "image limit"):
        for how in ("one by one", "at once"):
            report.compare(layout, mode, f"{mode}, {how}", expected, found[mode][how])
    report.refuses(layout, "image limit", found["image limit"]["refused"], "At most 1 image")

    merged = ask_transformers(folder, plain, merge(saved["language_model"]))
    report.compare(layout, "LoRA", "LoRA, with the adapter", merged, found["LoRA"]["adapter"])
    report.compare(layout, "LoRA", "LoRA, without it again", expected, found["LoRA"]["after adapters"])
    for text in found["LoRA"]["refused adapters"]:
        report.refuses(layout, "LoRA", text, "Merge it")

    is_cached = [tokens > 0 for tokens in found["plain"]["cached tokens"]]
    again, first = (list(itertools.compress(each, is_cached)) for each in (found["plain"]["at once"], expected))
    report.compare(layout, "prefix cache", "prompts with tokens in the cache", first, again)
    answers = ask_transformers(folder, asked["special"])
    report.compare(layout, "plain", "max_crops and modes of images", answers, found["plain"]["special"])
    report.refuses(layout, "over-long", found["plain"]["over-long"], "maximum model length")
    for text, (*_, part) in zip(found["plain"]["refused"], asked["wrong"], strict=True):
        report.refuses(layout, "plain", text, part)
    return expected


def check_answers(workspace: Path, report: Report, only: str | None = None) -> list[str]:
    """Fills the table, or only the row of one layout; returns its rows."""
    from transformers import AutoProcessor

    from jvlm.conversion_scripts.convert_release import convert_release
    from jvlm.conversion_scripts.export_to_hub import export_to_hub
    from tools import vllm_load

    stitched = random_model(
        workspace / "stitched", DIGITS, layout="stitched", pooled_grid=None, use_last_tile_embedding=None
    )
    source = random_model(workspace / "source", PUBLISHED)
    folders = {
        "independent": DIGITS,
        "stitched, with BOS token": stitched,
        "published": convert_release(source, workspace / "published", reverse=True),
    }
    for layout, folder in folders.items():
        if only not in (None, layout):
            continue
        asked = questions(layout, folder)
        expected = check_modes(layout, folder, asked, workspace, report)
        with vllm_load.server(folder, workspace / "server.log") as address:
            streamed = [vllm_load.stream(address, conversation) for conversation in asked["conversations"]]
        processor = AutoProcessor.from_pretrained(folder)
        texts = [processor.decode(one["answer"], skip_special_tokens=True) for one in expected]
        # vLLM does not stream an incomplete character at the end, which random models write.
        found = [text.rstrip("�") for text in streamed]
        report.compare(layout, "streaming", "streamed by the server", [text.rstrip("�") for text in texts], found)

    if only is not None:
        return [only]
    # Without the package, the code of the exported folder answers.
    asked = questions("stitched", stitched)["conversations"]
    folder = export_to_hub(stitched, workspace / "exported")
    job = {"folder": str(folder), "conversations": asked, "max_length": MAX_LENGTH, "modes": [NO_PLUGIN]}
    found = in_process("run_answers", job, workspace, plugin=False)[NO_PLUGIN]
    expected = ask_transformers(stitched, [(conversation, {}) for conversation in asked])
    for how in ("one by one", "at once"):
        report.compare(NO_PLUGIN, "plain", how, expected, found[how])
    return [*folders, NO_PLUGIN]


def check_faults(workspace: Path) -> tuple[str, bool]:
    """A table of the faults of vLLM, and whether all of them still show."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from vllm import __version__

    import jvlm  # noqa: F401 - registers the classes
    from examples.digits.pages import READ, held_out_pages

    image: Any = held_out_pages(12)[-1].image
    inputs = AutoProcessor.from_pretrained(DIGITS)(text="<|image|>", images=image, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(DIGITS, dtype="float32")
    (features,) = model.get_image_features(inputs["pixel_values"], inputs["image_token_positions"]).pooler_output
    over_long = [user(READ, *[image] * (MAX_LENGTH // inputs["input_ids"].shape[1] + 1))]
    job = {
        **{"folder": str(DIGITS), "conversation": [user(READ, image)], "over-long": over_long},
        **{"features": features.tolist(), "prompt": f" User:<|image|> {READ} Assistant:"},
    }
    *faults, last = FAULTS
    texts = in_process("run_faults", {**job, "faults": faults}, workspace)
    try:
        texts |= in_process("run_faults", {**job, "faults": [last]}, workspace, processes=2)
    except RuntimeError as error:  # the fault ended the process
        texts[last] = str(error)
    rows = [["fault", f"vLLM {__version__}", "what to do"], ["---"] * 3]
    for name, text in texts.items():
        print(f"{name}: {text[-300:] or 'works'}", flush=True)
        rows.append([name, "shows" if text else "does not show any more", FAULTS[name][1]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), all(texts.values())


def write(name: str, table: str) -> None:
    """Puts a table between its marks in docs/serving.md."""
    path = ROOT / "docs" / "serving.md"
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    text, count = re.subn(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", path.read_text(), flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{path} must have one <!-- {name} --> … <!-- /{name} -->, found {count}.")
    path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART", help="answers, faults, or the name of a layout in the table")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/serving.md")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.job is not None:
        request = json.loads(args.job.read_text())
        args.result.write_text(json.dumps(globals()[request["function"]](request["job"])))
        return 0

    sys.path.insert(0, str(ROOT))
    report, tables, faults_show = Report(), {}, True
    with tempfile.TemporaryDirectory() as temporary:
        if args.only != "faults":
            only = None if args.only == "answers" else args.only
            tables["vllm"] = report.table(check_answers(Path(temporary), report, only))
        if args.only in (None, "faults"):
            tables["vllm faults"], faults_show = check_faults(Path(temporary))
    for name, table in tables.items():
        print(f"\n{table}")
        if args.write:
            write(name, table)
    print("\nvLLM gives the same answers as Transformers" if report.is_equal else "\nvLLM gives other answers")
    if not faults_show:
        print("A fault of vLLM does not show any more: update docs/serving.md")
    return 0 if report.is_equal and faults_show else 1


if __name__ == "__main__":
    sys.exit(main())
