# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What the commands share: options, loading a model, streaming an answer. `jvlm` is imported only when needed."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jvlm import PrefixCache


def shipped_model() -> Path:
    """The folder of the model in the box, which reads handwritten digits."""
    [package] = find_spec("jvlm").submodule_search_locations or [""]  # type: ignore[union-attr]
    return Path(package) / "shipped_model"


def find_checkpoint(model: str | None, revision: str | None = None) -> str:
    """
    The folder or Hub id of a checkpoint, by default the shipped model. Transformers would try for minutes to download
    each file of a folder that does not exist.

    Raises:
        OSError: if it is no folder and no repository that is in the cache or can be reached.
    """
    if model is None:
        return str(shipped_model())
    if Path(model).exists():
        return model
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    missing = f"There is no folder {model!r}, and"
    try:
        files = ("config.json", "adapter_config.json")
        if not any(isinstance(try_to_load_from_cache(model, file, revision=revision), str) for file in files):
            model_info(model, timeout=10)
    except HFValidationError as error:
        raise OSError(f"{missing} the name cannot be that of a repository on the Hugging Face Hub.") from error
    except RepositoryNotFoundError as error:
        raise OSError(f"{missing} no repository of this name on the Hugging Face Hub that you may read.") from error
    except HfHubHTTPError:
        pass  # `from_pretrained` tries again
    except Exception as error:  # its class is that of one of several HTTP libraries
        raise OSError(f"{missing} the Hugging Face Hub cannot be reached: {error}") from error
    return model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, `--dtype`, `--device`, `--max-crops` and `--max-new-tokens`."""
    parser.add_argument(
        "--model",
        metavar="ID",
        help="folder or Hub id of a checkpoint; by default the shipped model, which reads handwritten digits only",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype to compute in; by default float32 on a CPU, which is faster there, and the checkpoint's elsewhere",
    )
    parser.add_argument("--device", help="for example cpu or cuda:1; by default an accelerator if there is one")
    parser.add_argument("--max-crops", type=int, metavar="N", help="maximum number of tiles of an image")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="maximum length of an answer")


def choose_device(device: str | None) -> str:
    """The device, by default an accelerator if there is one."""
    import torch

    accelerator = None if device else torch.accelerator.current_accelerator(check_available=True)
    return device or (accelerator.type if accelerator else "cpu")


def choose_dtype(dtype: str | None, device: str) -> str:
    """The dtype to compute in, by default float32 on a CPU, which is faster there, and the checkpoint's elsewhere."""
    return dtype or ("float32" if device == "cpu" else "auto")


class Answerer:
    """
    A model and its processor, loaded from a folder or the Hub.

    Args:
        model (`str`, *optional*): folder or Hub id, by default the shipped model.
        dtype (`str`, *optional*): by default float32 on a CPU and that of the checkpoint elsewhere.
        device (`str`, *optional*): by default an accelerator if there is one.
        max_crops (`int`, *optional*): maximum number of tiles of an image, by default that of the processor.
        max_new_tokens (`int`, *optional*, defaults to 512): maximum length of an answer.

    Raises:
        OSError, ValueError: if the checkpoint cannot be loaded, or not onto the device.

    Attributes:
        end_tokens (`list[int]`): the tokens that end an answer.
        is_cut (`bool`): whether `max_new_tokens` cut the last answer.
    """

    def __init__(
        self,
        model: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        max_crops: int | None = None,
        max_new_tokens: int = 512,
    ):
        self.id = find_checkpoint(model)

        from transformers import AutoProcessor

        import jvlm  # noqa: F401 - registers the classes
        from jvlm.runtimes import is_runtime_folder

        self.name = str(model or "the shipped model, which reads handwritten digits only")
        self.processor = AutoProcessor.from_pretrained(self.id)
        self.model = (
            _load_export(self.id, dtype, device) if is_runtime_folder(self.id) else _load(self.id, dtype, device)
        )
        ends = self.model.generation_config.eos_token_id
        self.end_tokens = ends if isinstance(ends, list) else [ends]
        self.is_cut = False
        self.images_kwargs: dict[str, Any] = {} if max_crops is None else {"max_crops": max_crops}
        self.max_new_tokens = max_new_tokens

    def stream(self, messages: list[dict], max_crops: int | None = None, **kwargs) -> Iterator[str]:
        """
        Answers a conversation.

        Args:
            messages (`list[dict]`): messages with images, in the format of chat templates.
            max_crops (`int`, *optional*): replaces that of this object.
            **kwargs: further arguments of `generate`.

        Returns:
            `Iterator[str]`: the pieces of the answer. Generation ends when the iterator is closed.

        Raises:
            ValueError: if an image cannot be read or the messages are invalid.
        """
        from jvlm.processing.prompt_inputs import prompt_inputs

        images_kwargs = self.images_kwargs if max_crops is None else {"max_crops": max_crops}
        inputs = prompt_inputs(self.processor, messages, **images_kwargs).to(self.model.device, self.model.dtype)
        return self._stream(self.model.generate, **inputs, **kwargs)

    def read(self, images: list) -> "PrefixCache":
        """Images that several questions are about, which the model then reads once."""
        from jvlm import PrefixCache

        return PrefixCache(self.model, self.processor, images, **self.images_kwargs)

    def stream_about(self, pages: "PrefixCache", messages: list[dict]) -> Iterator[str]:
        """As [`stream`], with the images of `pages` at the start of the first message, which has none itself."""
        return self._stream(pages.generate, question=messages)

    def _stream(self, generate: Callable, **kwargs) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        is_closed = Event()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(
                generate,
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                streamer=streamer,
                **kwargs,
                stopping_criteria=[lambda ids, scores: ids.new_full(ids.shape[:1], is_closed.is_set(), dtype=bool)],
            )
            answer.add_done_callback(lambda _: streamer.end())  # also after an error
            try:
                yield from filter(None, streamer)
            finally:
                is_closed.set()
            self.is_cut = int(answer.result()[0, -1]) not in self.end_tokens


def _load(model_id: str, dtype: str | None, device: str | None) -> Any:
    from transformers import AutoModelForImageTextToText

    device = choose_device(device)
    model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=choose_dtype(dtype, device))
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:  # PyTorch has no error of its own for this
        raise ValueError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _load_export(folder: str, dtype: str | None, device: str | None) -> Any:
    from jvlm.runtimes import JinaVLMRuntimeModel

    try:
        model = JinaVLMRuntimeModel.from_pretrained(folder)
    except ImportError as error:
        raise ValueError(str(error)) from error
    own = str(model.dtype).removeprefix("torch.")
    if device not in (None, "cpu") or dtype not in (None, own):
        raise ValueError(f"{folder} was exported for the CPU in {own}; leave out --device and --dtype.")
    return model


def user_message(images: Iterable, question: str) -> dict:
    """A user's message: the images, then the question."""
    content = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def print_answer(pieces: Iterable[str]) -> str:
    """Prints the pieces of an answer as they come, without the space at its start. Returns the whole answer."""
    answer = ""
    for piece in pieces:
        piece = piece if answer else piece.lstrip()
        print(piece, end="", flush=True)
        answer += piece
    print()
    return answer.rstrip()


def note_cut_answer(answerer: Answerer, command: str) -> None:
    """Says on the standard error if the last answer was cut."""
    if answerer.is_cut:
        print(
            f"{command}: the answer was cut after {answerer.max_new_tokens} tokens; increase --max-new-tokens.",
            file=sys.stderr,
        )
