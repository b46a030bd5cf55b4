# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Opens encoded images: paths, bytes, base64 strings, URLs and undecoded columns of Datasets."""

import base64
import binascii
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import PIL.Image
import PIL.ImageOps
from transformers.image_utils import httpx, is_valid_image


def load_image(image: Any, timeout: float = 30.0) -> Any:
    """
    Opens an encoded image. Every kind of input gives the same pixels: the first frame, in its own mode, upright.

    The EXIF orientation is applied, as `transformers.image_utils.load_image` does. The image is not converted to RGB,
    so that the image processor sees its transparency and its range of values.

    Args:
        image (`str`, `os.PathLike`, `bytes` or `dict`): a path, a URL that begins with `http://` or `https://`, a
            `data:` URL, a base64 string, the bytes of an image file, or the `{"bytes": ..., "path": ...}` of an
            undecoded column of 🤗 Datasets. PIL images, arrays and tensors are returned unchanged.
        timeout (`float`, *optional*, defaults to 30.0): maximum time for a download, in seconds.

    Returns:
        `PIL.Image.Image`: the decoded image, independent of its file.

    Raises:
        ValueError: if the image is of another type, is missing, or cannot be downloaded or decoded. The message names
            the path or the URL.
    """
    if is_valid_image(image):
        return image
    if isinstance(image, dict) and not {"bytes", "path"}.isdisjoint(image):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, (bytes, bytearray, memoryview)):
        with decoding(f"the file of {len(image)} bytes"):
            return _open(BytesIO(image))
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(
            f"an image of type {type(image).__name__} is not supported; pass a PIL image, an array, a tensor, a path, "
            'a URL, bytes, or a dict with "bytes" or "path".'
        )
    name = repr(_shorten(os.fsdecode(image)))
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        with _naming_cause(f"{name} cannot be downloaded", "check the URL and the connection"):
            content = _download(image, timeout)
        with decoding(name):
            return _open(BytesIO(content))
    if isinstance(image, str) and image.startswith("data:"):
        with decoding(name):
            return _open(BytesIO(base64.decodebytes(image.partition(",")[2].encode())))
    if isinstance(image, os.PathLike) or os.path.isfile(image):
        # With a path instead of a file, Pillow maps some TIFF files into memory and turns them differently.
        with decoding(name), open(image, "rb") as file:
            return _open(file)
    not_base64 = (binascii.Error, PIL.UnidentifiedImageError)  # what they say does not help to find a missing file
    with _naming_cause(
        f"{name} is not a file, and not an image in base64", "check the path or the string", not_base64
    ):
        return _open(BytesIO(base64.decodebytes(image.encode())))


@contextmanager
def naming_image(index: int) -> Iterator[None]:
    """Puts the index of an image in front of the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Image {index}: {error}") from error


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turns the errors of Pillow's decoders, which are of many classes, into a `ValueError` that names the image."""
    with _naming_cause(f"{name} cannot be decoded", "check that the file is complete and an image"):
        yield


@contextmanager
def _naming_cause(message: str, fix: str, unsaid: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)):
            fix = "raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        elif isinstance(error, OSError) and error.errno is not None:
            fix = "check the path"
        reason = _shorten(str(error).partition(" <_io.")[0], 300)  # without the address of a file object
        cause = "" if isinstance(error, unsaid) else f" ({type(error).__name__}: {reason})"
        raise ValueError(f"{message}{cause}; {fix}.") from error


def _open(file: BinaryIO) -> PIL.Image.Image:
    with PIL.Image.open(file) as image:
        return PIL.ImageOps.exif_transpose(image)


def _download(url: str, timeout: float) -> bytes:
    """The content at a URL. `timeout` limits every step, and the whole content, which may arrive byte by byte."""
    deadline, content = time.monotonic() + timeout, bytearray()
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"there is no complete answer after {timeout:g} seconds")
    return bytes(content)


def _shorten(text: str, length: int = 200) -> str:
    """The beginning of a text, which may be a whole base64 string."""
    return text if len(text) <= length else f"{text[:length]}…"


__all__ = ["load_image"]
