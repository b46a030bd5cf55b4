# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The web page of `jvlm demo` and of Spaces: an image, its tiles and a conversation about it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import PIL.Image

from jvlm import draw_tiles

from .answering import Answerer, user_message


def samples(folder: str | Path) -> list[dict[str, str]]:
    """The sample images of a checkpoint folder, as dicts with `image` (a path), `question` and `answer`."""
    file = Path(folder) / "samples" / "samples.json"
    if not file.is_file():
        return []
    return [{**sample, "image": str(file.parent / sample["image"])} for sample in json.loads(file.read_text())]


def web_page(answerer: Answerer) -> gr.Blocks:
    """
    The web page for a model.

    Args:
        answerer ([`Answerer`]): the model and its processor.

    Returns:
        `gradio.Blocks`: the page; `launch()` serves it.
    """
    default_crops = answerer.processor.image_processor.max_crops
    with gr.Blocks(title="JinaVLM") as blocks:
        gr.Markdown(f"# JinaVLM\nModel: {answerer.name}. Drop an image, look at its tiles, ask about it.")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label="Image", elem_id="image", height=320)
                max_crops = gr.Slider(
                    1,
                    max(12, default_crops),
                    value=answerer.images_kwargs.get("max_crops", default_crops),
                    step=1,
                    label="Maximum number of tiles (max_crops)",
                    elem_id="max-crops",
                )
                tokens = gr.Markdown(elem_id="tokens")
                tiles = gr.Image(show_label=False, elem_id="tiles", interactive=False, buttons=["fullscreen"])
            with gr.Column():
                chat = gr.Chatbot(label="Conversation", elem_id="chat", height=480)
                question = gr.Textbox(label="Question", elem_id="question", submit_btn=True)
                seconds = gr.Markdown(elem_id="seconds")
                if examples := samples(answerer.id):
                    gr.Examples([[sample["image"], sample["question"]] for sample in examples], [image, question])
        handlers = _Handlers(answerer)
        gr.on(
            [image.change, max_crops.change],
            handlers.show_tiles,
            inputs=[image, max_crops],
            outputs=[tiles, tokens, chat, seconds],
        )
        question.submit(handlers.ask, inputs=[question, chat, image, max_crops], outputs=[question, chat, seconds])
    return blocks


class _Handlers:
    """What the page calls. An error that the user can mend is shown as a sentence."""

    def __init__(self, answerer: Answerer):
        self.answerer = answerer

    def show_tiles(self, path: str | None, max_crops: int) -> tuple:
        """The drawing of the tiles and a line about them. A new image or grid starts a new conversation."""
        if path is None:
            return None, "", [], ""
        image, processor = self._open(path), self.answerer.processor
        try:
            rows, cols = processor.image_processor.get_image_grid(image.height, image.width, {"max_crops": max_crops})
            counts = processor._get_num_multimodal_tokens([[image.height, image.width]], max_crops=max_crops)
            drawing = draw_tiles(image, processor, max_crops=max_crops)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        size = f"{image.width} × {image.height} pixels"
        line = f"{size}: {rows} × {cols} tiles and a thumbnail, {counts['num_image_tokens'][0]} image tokens"
        return drawing, line, [], ""

    def ask(self, question: str, history: list[dict], path: str | None, max_crops: int) -> Iterator[tuple]:
        """Yields the text box, the conversation with each new piece of the answer, and at the end the time it took."""
        if not question.strip():
            raise gr.Error("Write a question first.")
        images = [] if path is None else [self._open(path)]
        texts = [*((turn["role"], turn["content"][0]["text"]) for turn in history), ("user", question)]
        messages = [{"role": role, "content": text} for role, text in texts]
        messages[0] = user_message(images, texts[0][1])
        history = [*history, {"role": "user", "content": question}, {"role": "assistant", "content": ""}]
        yield "", history, ""
        start = time.perf_counter()
        try:
            for piece in self.answerer.stream(messages, max_crops):
                history[-1]["content"] = (history[-1]["content"] + piece).lstrip()
                yield "", history, ""
        except ValueError as error:
            raise gr.Error(str(error)) from error
        yield "", history, f"{time.perf_counter() - start:.1f} seconds"

    def _open(self, path: str) -> PIL.Image.Image:
        try:
            return self.answerer.processor.image_processor.fetch_images(path)
        except (OSError, ValueError) as error:
            raise gr.Error(f"This file is not an image that can be read. {error}") from error
