# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Writes the script that answers with ONNX graphs, without PyTorch and Transformers, into their folder."""

import inspect
import json
import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import PIL.Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.utils import logging

from ..configuration.configuration_jvlm import default_pooled_grid
from ..configuration.setting_kinds import MAX_CROPS, MAX_TILE_SIZE
from ..processing import tiling
from ..processing.processing_jvlm import JinaVLMProcessor


logger = logging.get_logger(__name__)
_QUESTION = "QUESTION"
_CODE_OF_TILING = f"""import math

{{default_pooled_grid}}

{{smart_resize}}

MAX_CROPS, MAX_TILE_SIZE = {MAX_CROPS}, {MAX_TILE_SIZE}
"""


def write_answer_script(processor: JinaVLMProcessor, folder: Path) -> None:
    """
    Writes `answer.py`, the modules that it imports, `geometry.py` and `digests.py`, and the parts of its prompt,
    `answer.json`, unless the processor resizes or writes prompts in ways that the script does not know: then a warning
    says so.
    """
    try:
        prompt = _prompt(processor)
        _check_images(processor)
    except ValueError as error:
        logger.warning(f"The folder gets no answer.py, the script that needs no PyTorch: {error}")
        return
    geometry = asdict(processor.image_processor.geometry())
    (folder / "answer.json").write_text(json.dumps({**prompt, "geometry": geometry}, indent=2) + "\n", "utf-8")
    imported = r"^from \.\.configuration.*import.*\n"
    code = _CODE_OF_TILING.format(
        default_pooled_grid=inspect.getsource(default_pooled_grid), smart_resize=inspect.getsource(smart_resize)
    )
    source = re.sub(imported, "", inspect.getsource(tiling), flags=re.MULTILINE)
    source = source.replace("import numpy as np\n", f"import numpy as np\n{code}", 1)
    (folder / "geometry.py").write_text(source, "utf-8")
    # Read and not imported: this needs onnxruntime only where it runs.
    runtimes = Path(find_spec("jvlm.runtimes").origin).parent  # type: ignore
    script = (runtimes / "answer.py").read_text("utf-8")
    script = re.sub(r"^from transformers.*import smart_resize\n", "", script, flags=re.MULTILINE)
    imports = "from ..processing.tiling import TileGeometry\nfrom .digests import digest\n"
    script = script.replace(imports, "from digests import digest\nfrom geometry import TileGeometry, smart_resize\n")
    (folder / "answer.py").write_text(script, "utf-8")
    (folder / "digests.py").write_text((runtimes / "digests.py").read_text("utf-8"), "utf-8")


def _check_images(processor: JinaVLMProcessor) -> None:
    settings = processor.image_processor
    if settings.resample != PIL.Image.Resampling.BILINEAR or settings.antialias or settings.resize_in_float32:
        raise ValueError("it resizes 8-bit images bilinearly, without an anti-aliasing filter.")
    if not (settings.do_rescale and settings.do_normalize and settings.do_convert_rgb):
        raise ValueError("it rescales, normalizes and converts images to RGB.")
    if settings.drop_uniform_cells or settings.max_image_tokens is not None:
        raise ValueError("it gives image tokens to all cells.")
    if not processor.tokenizer.is_fast:
        raise ValueError("it needs a tokenizer.json.")


def _prompt(processor: JinaVLMProcessor) -> dict:
    """The parts of the prompt of a user's turn, and whether the tokenizer adds special tokens to it."""

    def rendered(num_images: int) -> str:
        content = num_images * [{"type": "image"}] + [{"type": "text", "text": _QUESTION}]
        messages = [{"role": "user", "content": content}]
        return processor.with_bos_token(processor.apply_chat_template(messages, add_generation_prompt=True))

    before, _, rest = rendered(1).partition(processor.image_token)
    between, _, after = rest.partition(_QUESTION)
    if any(
        rendered(count) != before + count * processor.image_token + between + _QUESTION + after for count in range(4)
    ):
        raise ValueError("its prompt is the images, one after the other, and then the question.")
    text = rendered(0)
    bare = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "before": before,
        "between": between,
        "after": after,
        "add_special_tokens": processor(text=text)["input_ids"][0] != bare,
    }


__all__ = ["write_answer_script"]
