# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Encoded images: every way to pass one gives the same pixels, and errors name the image and its index."""

import base64
import contextlib
import io
import re
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from helpers import chat_inputs, encode_image, make_image

from jvlm import JinaVLMImageProcessor
from jvlm.processing.image_loading import load_image


SECONDS_OF_A_SLOW_ANSWER = 20


class Handler(BaseHTTPRequestHandler):
    """Serves `files` of the server, and answers that are slow or have the status of the path."""

    def do_GET(self):
        path = self.path.lstrip("/")
        if path in self.server.files:
            self.answer(200, self.server.files[path])
        elif path == "moved":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
        elif path in ("silent", "dripping"):
            if path == "dripping":
                self.send_response(200)
                self.end_headers()
            end = time.monotonic() + SECONDS_OF_A_SLOW_ANSWER
            while time.monotonic() < end and not self.server.is_closing.wait(0.02):
                if path == "dripping":
                    self.wfile.write(b"\0")
        else:
            self.answer(int(path) if path.isdigit() else 404, b"<html>an error</html>")

    def answer(self, status: int, content: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # if the client gives up
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    """A local HTTP server with `files`, a dict from paths to contents, and `url`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.files, server.is_closing = {}, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.is_closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def image_processor() -> JinaVLMImageProcessor:
    return JinaVLMImageProcessor(size={"height": 56, "width": 56}, patch_size=8, overlap_margins=[1, 1])


def ways(content: bytes, path: Path, server) -> dict:
    """All ways to pass the content of an image file."""
    path.write_bytes(content)
    server.files[path.name] = content
    text = base64.b64encode(content).decode()
    return {
        "path": path,
        "path as a string": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "base64": text,
        "base64 with line breaks": base64.encodebytes(content).decode(),
        "data URL": f"data:image/png;base64,{text}",
        "URL": f"{server.url}/{path.name}",
        "column with bytes": {"bytes": content, "path": None},
        "column with bytes and a name": {"bytes": content, "path": "name of the file in the data set.png"},
        "column with a path": {"bytes": None, "path": str(path)},
        "column with a URL": {"path": f"{server.url}/{path.name}"},
    }


def oriented(kind: str, orientation: int) -> tuple[bytes, np.ndarray]:
    """An image file with an EXIF orientation, and its pixels as they must be seen."""
    image, exif = make_image(60, 200), PIL.Image.Exif()
    exif[0x0112] = orientation
    content = encode_image(image, kind, exif=exif)
    # Pillow turns TIFF files itself, when it decodes them.
    decoded = PIL.Image.open(io.BytesIO(content)).convert("RGB") if kind == "JPEG" else image
    method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    return content, np.asarray(decoded if method is None else decoded.transpose(PIL.Image.Transpose(method)))


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_way_applies_the_orientation(tmp_path, server, kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    content, expected = oriented(kind, orientation)
    if options:
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        content = encode_image(make_image(60, 200), kind, exif=exif, **options)
    for way, given in ways(content, tmp_path / f"image.{kind.lower()}", server).items():
        loaded = load_image(given)
        assert isinstance(loaded, PIL.Image.Image)
        assert np.array_equal(np.asarray(loaded), expected), way
        assert loaded.getexif().get(0x0112, 1) == 1, way


def test_every_way_gives_the_same_model_inputs(build_processor, tmp_path, server):
    """Inference from a path or URL and training on a column of Datasets see the same image."""
    processor = build_processor()
    content, expected = oriented("JPEG", 6)
    reference = processor(images=PIL.Image.fromarray(expected), text="<|image|> a", return_tensors="pt")
    for way, given in ways(content, tmp_path / "image.jpg", server).items():
        for images in (given, [given], [[given]]):
            inputs = processor(images=images, text="<|image|> a", return_tensors="pt")
            assert torch.equal(inputs["pixel_values"], reference["pixel_values"]), way
        content = [{"type": "image", "image": given}, {"type": "text", "text": "a"}]
        inputs = chat_inputs(processor, [{"role": "user", "content": content}])
        assert torch.equal(inputs["pixel_values"], reference["pixel_values"]), way


def test_decoded_and_undecoded_columns_of_datasets_agree(image_processor, tmp_path):
    datasets = pytest.importorskip("datasets")
    content, expected = oriented("JPEG", 6)
    (tmp_path / "image.jpg").write_bytes(content)
    for row in ({"bytes": content, "path": None}, str(tmp_path / "image.jpg")):
        rows = datasets.Dataset.from_dict({"image": [row]})
        for column in (datasets.Image(), datasets.Image(decode=False)):
            image = rows.cast_column("image", column)[0]["image"]
            assert isinstance(image, PIL.Image.Image if column.decode else dict)
            outputs = image_processor(image, return_tensors="pt")["pixel_values"]
            assert torch.equal(outputs, image_processor(expected, return_tensors="pt")["pixel_values"])


def test_loaded_images_keep_their_mode_and_need_no_file(tmp_path):
    path = tmp_path / "image.tiff"
    frames = [make_image(20, 30, seed).convert("RGBA") for seed in range(3)]
    path.write_bytes(encode_image(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    loaded = load_image(path)
    path.unlink()
    assert loaded.mode == "RGBA"
    assert np.array_equal(np.asarray(loaded), np.asarray(frames[0])), "the first frame"


def test_decoded_images_are_returned_unchanged():
    for image in (make_image(20, 30), np.zeros((20, 30, 3), np.uint8), torch.zeros(3, 20, 30)):
        assert load_image(image) is image


def test_redirects_are_followed(server):
    server.files["image.png"] = encode_image(make_image(20, 30))
    assert np.array_equal(np.asarray(load_image(f"{server.url}/moved")), np.asarray(make_image(20, 30)))


@pytest.mark.parametrize("path", ["silent", "dripping"])
def test_slow_downloads_end(image_processor, server, path):
    """`timeout` limits a server that does not answer, and one that sends byte by byte."""
    url, start = f"{server.url}/{path}", time.monotonic()
    with pytest.raises(ValueError, match=rf"Image 1: '{re.escape(url)}' cannot be downloaded \(.*Timeout") as error:
        image_processor.fetch_images([make_image(20, 30), url], timeout=0.3)
    assert time.monotonic() - start < SECONDS_OF_A_SLOW_ANSWER / 2
    assert "check the URL and the connection" in str(error.value)


def test_downloads_have_a_time_limit_by_default(image_processor, monkeypatch):
    timeouts = []
    monkeypatch.setattr("jvlm.processing.image_loading._download", lambda url, timeout: timeouts.append(timeout))
    with pytest.raises(ValueError, match="cannot be decoded"):
        image_processor("https://example.com/image.png")
    assert timeouts == [30.0]


@pytest.mark.parametrize("path", ["404", "500", "absent.png"])
def test_failed_downloads(image_processor, server, path):
    url = f"{server.url}/{path}"
    with pytest.raises(ValueError, match=rf"Image 0: '{re.escape(url)}' cannot be downloaded \(.*(404|500)"):
        image_processor(url)


def test_unreachable_urls(image_processor):
    for url in ("http://127.0.0.1:1/image.png", "https://", "http://[::1", "http://a b/c"):
        with pytest.raises(ValueError, match=rf"Image 0: '{re.escape(url)}' cannot be downloaded"):
            image_processor(url)


def test_downloads_of_other_things(image_processor, server):
    server.files["page.html"] = b"<html>a page</html>"
    with pytest.raises(ValueError, match=r"Image 0: 'http.*page\.html' cannot be decoded .*is complete and an image"):
        image_processor(f"{server.url}/page.html")


def bomb() -> bytes:
    """A PNG file with a header of 40,000 × 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decompression_bombs(image_processor, tmp_path, server):
    for way, given in ways(bomb(), tmp_path / "bomb.png", server).items():
        with pytest.raises(ValueError, match=r"Image 1: .*bomb.*raise PIL\.Image\.MAX_IMAGE_PIXELS") as error:
            image_processor([make_image(20, 30), given])
        assert len(str(error.value)) < 800, way


@pytest.mark.parametrize(
    "name", ["absent.png", "folder/absent.jpg", "photos", "data/imgs/photo1", "", "a\0b", "\ud800"]
)
def test_missing_files(image_processor, tmp_path, name):
    """A string that is no file is not only called an invalid base64 string."""
    with pytest.raises(ValueError, match=re.escape(f"Image 0: {name!r} is not a file, and not an image in base64")):
        image_processor(name)
    for path in (Path(name), tmp_path / name):
        with pytest.raises(ValueError, match=r"Image 1: .* cannot be decoded .*check"):
            image_processor([[make_image(20, 30)], [path]])


def test_folders_and_unreadable_files(image_processor, tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        image_processor(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be decoded \(IsADirectoryError.*check the path"):
        image_processor(tmp_path)


@pytest.mark.parametrize(
    "value", [5, None, {"a": 1}, object(), {"bytes": None, "path": None}, {"path": 3}, np.float64(3), {1, 2}]
)
def test_unsupported_types(image_processor, value):
    for images, index in ((value, 0), ([make_image(20, 30), value], 1), ([[make_image(20, 30)] * 2, [value]], 2)):
        with pytest.raises(
            ValueError, match=rf"Image {index}: an image of type \w+ is not supported; pass a PIL image"
        ):
            image_processor(images)


def test_files_that_are_closed_before_they_are_decoded(image_processor, tmp_path):
    """Pillow reads the pixels on their first use."""
    frames = [make_image(20, 30, seed) for seed in range(2)]
    for kind in ("TIFF", "PNG", "GIF", "JPEG", "BMP"):
        options = {"save_all": True, "append_images": frames[1:]} if kind in ("TIFF", "PNG", "GIF") else {}
        (tmp_path / "image").write_bytes(encode_image(frames[0], kind, **options))
        with PIL.Image.open(tmp_path / "image") as image:
            pass
        with pytest.raises(ValueError, match=r"Image 0: the \w+ image of 30×20 pixels cannot be decoded"):
            image_processor(image)


ARRAYS = {
    "longdouble": lambda: np.zeros((20, 20, 3), np.longdouble),
    "complex": lambda: np.zeros((20, 20, 3), complex),
    "complex tensor": lambda: torch.zeros(20, 20, 3, dtype=torch.complex64),
    "text": lambda: np.full((20, 20, 3), "a"),
    "objects": lambda: np.zeros((20, 20, 3), object),
    "records": lambda: np.zeros((20, 20), [("red", "u1")]),
    "dates": lambda: np.zeros((20, 20, 3), "datetime64[s]"),
    "meta": lambda: torch.zeros(3, 20, 20, device="meta"),
    "sparse": lambda: torch.ones(3, 20, 20).to_sparse(),
    "compressed": lambda: torch.eye(20).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(20, 20, 3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(20, 20, 3)] * 2),
    "bits": lambda: torch.zeros(20, 20, 3, dtype=torch.uint8).view(torch.bits8),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.filterwarnings("ignore")
def test_arrays_that_cannot_be_read(image_processor, kind):
    with pytest.raises(ValueError, match=r"Image 1: a (ndarray|Tensor) of dtype .* cannot be read \(") as error:
        image_processor([make_image(20, 30), ARRAYS[kind]()])
    assert len(str(error.value)) < 1000


def test_low_precision_floats(image_processor):
    values = torch.full((3, 20, 20), 0.5)
    expected = image_processor(values, do_rescale=False)["pixel_values"]
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(image_processor(values.to(dtype), do_rescale=False)["pixel_values"], expected)


def test_numbers_of_dimensions(image_processor):
    for array in (np.zeros(5), np.zeros(()), torch.zeros(2, 2, 2, 2, 2), torch.tensor(3.0)):
        with pytest.raises(
            ValueError, match=r"Image 1: an array must have 2 or 3 dimensions.*got .* of \d dimensions"
        ):
            image_processor([make_image(20, 30), array])
    for empty in ([], [[]], [[], []], ()):
        with pytest.raises(ValueError, match="`images` is empty; pass at least one image"):
            image_processor(empty)


WRONG_IMAGES = {
    "empty": (lambda: PIL.Image.new("RGB", (0, 5)), "0×5 pixels is empty"),
    "empty array": (lambda: np.zeros((0, 5, 3)), "is empty"),
    "ratio": (lambda: PIL.Image.new("RGB", (402, 2)), "`max_aspect_ratio` (200)"),
    "ratio of an array": (lambda: np.zeros((402, 2, 3), np.uint8), "`max_aspect_ratio` (200)"),
    "channels": (lambda: np.zeros((20, 20, 2), np.uint8), "1, 3 or 4 channels"),
    "bytes": (lambda: b"no image", "the file of 8 bytes cannot be decoded"),
    "truncated": (lambda: PIL.Image.open(io.BytesIO(encode_image(make_image(200, 300))[:999])), "cannot be decoded"),
    "path": (lambda: Path("absent.png"), "'absent.png' cannot be decoded"),
    "range": (lambda: np.full((20, 20, 3), 300), "values from 300 to 300"),
}


@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_errors_name_the_index_of_the_image(build_processor, kind):
    build, words = WRONG_IMAGES[kind]
    processor, good = build_processor(), make_image(20, 30)
    for images in ([good, good, good, build()], [[good], [good, good, build()]]):
        with pytest.raises(ValueError, match=rf"^Image 3: .*{re.escape(words)}"):
            processor.image_processor(images)
    with pytest.raises(ValueError, match=rf"^Image 3: .*{re.escape(words)}"):
        processor(images=[[good], [good, good, build()]], text=["<|image|>", "<|image|>" * 3])


def test_error_messages_of_base64_images_are_short(image_processor):
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    for content in (encode_image(noise)[:20_000], bytes(20_000)):
        text = base64.b64encode(content).decode()
        for given in (text, f"data:image/png;base64,{text}", {"path": text}):
            with pytest.raises(ValueError, match=r"^Image 0: ") as error:
                image_processor(given)
            assert len(str(error.value)) < 800


ABSURD = [
    ({"max_crops": 300_000}, "`max_crops` must be an integer from 1 to 1024, got 300000"),
    (
        {"size": {"height": 1_000_000, "width": 1_000_000}},
        "`size.height` must be an integer from 1 to 4096",
    ),
    ({"size": {"height": 4096, "width": 4096}, "patch_size": 1}, "4096 patches of `patch_size` (1)"),
    ({"patch_size": 10**12}, "`patch_size` must be an integer from 1 to 4096, got 1000000000000"),
    ({"pooling_size": 10**12}, "`pooling_size` must be an integer from 1 to 4096, got 1000000000000"),
    ({"pooled_grid": [2000, 2000]}, "`pooled_grid` must be two numbers of cells from 1 to 4"),
    ({"pooled_grid": [10**6, 10**6]}, "`pooled_grid` must be a list of 2 values"),
    ({"overlap_margins": [2000, 2000]}, "`overlap_margins` is [2000, 2000]"),
    (
        {"overlap_margins": [10**9, 10**9]},
        "`overlap_margins` must be a list of 2 values",
    ),
    ({"do_resize": True, "min_pixels": 10**12, "max_pixels": 10**12}, "`max_pixels` must be an integer from 1 to"),
    ({"do_resize": True, "min_pixels": 100, "max_pixels": 50}, "at most `max_pixels` (50)"),
    ({"do_resize": True, "min_pixels": -1}, "`min_pixels` must be an integer from 1 to 16777216, got -1"),
    ({"do_resize": True, "max_pixels": 0}, "`max_pixels` must be an integer from 1 to 2147483647, got 0"),
]


@pytest.mark.parametrize(("settings", "words"), ABSURD, ids=lambda value: str(value)[:40])
def test_absurd_settings_allocate_nothing(image_processor, monkeypatch, settings, words):
    def fail(*shape):
        raise AssertionError(f"allocated {shape}")

    monkeypatch.setattr("jvlm.processing.image_processing_jvlm.empty", fail)
    monkeypatch.setattr("jvlm.processing.resizing.empty", fail)
    changed = JinaVLMImageProcessor(**image_processor.to_dict())
    vars(changed).update(settings)
    for use in (
        lambda: JinaVLMImageProcessor(**{**image_processor.to_dict(), **settings}),
        lambda: image_processor(make_image(20, 30), **settings),
        lambda: image_processor.get_number_of_image_patches(20, 30, settings),
        lambda: changed(make_image(20, 30)),
        lambda: changed.get_number_of_image_patches(20, 30),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            use()


WRONG_TYPES = [
    {"max_crops": "3"},
    {"max_crops": 2.5},
    {"layout": 3},
    {"overlap_margins": 3},
    {"overlap_margins": ["a", "b"]},
    {"size": "56"},
    {"size": {"height": "56", "width": "56"}},
    {"patch_size": None},
    {"pooled_grid": 4},
    {"rescale_factor": 0.0},
    {"rescale_factor": float("nan")},
    {"image_mean": [0.5, 0.5]},
    {"image_mean": float("inf")},
    {"image_std": 0.0},
    {"image_std": [0.5, 0.5, -0.5]},
    {"image_std": "wide"},
    {"max_aspect_ratio": float("nan")},
    {"do_center_crop": True, "crop_size": 30},
    {"do_pad": True},
    {"data_format": "channels_last"},
]


@pytest.mark.parametrize("settings", WRONG_TYPES, ids=str)
def test_wrong_types_and_values_of_settings(image_processor, settings):
    """The error is a `ValueError` that names the argument, also if a file or an attribute sets it."""
    name = next(iter(settings))
    if settings[name] is not None:
        with pytest.raises(ValueError, match=name):
            image_processor(make_image(20, 30), **settings)
        with pytest.raises(ValueError, match=name):
            image_processor.get_number_of_image_patches(20, 30, settings)
    for key, value in settings.items():
        setattr(image_processor, key, value)
    with pytest.raises(ValueError, match=name):
        image_processor(make_image(20, 30))


def test_none_is_the_setting_of_the_processor(build_processor):
    """In pixels and in the number of tokens alike."""
    processor = build_processor(do_resize=True, max_pixels=64 * 64, pooled_grid=[2, 2], max_crops=3)
    names = ("do_resize", "max_pixels", "pooled_grid", "max_crops", "layout", "size", "image_mean")
    expected = processor(images=make_image(300, 200), text="<|image|>", return_tensors="pt")
    outputs = processor.image_processor(make_image(300, 200), return_tensors="pt", **dict.fromkeys(names))
    assert torch.equal(outputs["pixel_values"], expected["pixel_values"])
    assert processor.image_processor.get_number_of_image_patches(300, 200, dict.fromkeys(names)) == len(
        expected["pixel_values"]
    )


def test_whole_numbers_of_json_files(image_processor):
    """JSON writers turn 1.0 into 1."""
    expected = image_processor(make_image(20, 30), image_mean=[0.0] * 3, image_std=1.0, rescale_factor=1.0)
    image_processor.image_mean, image_processor.image_std, image_processor.rescale_factor = (0, 0, 0), 1, 1
    outputs = image_processor(make_image(20, 30))
    assert torch.equal(outputs["pixel_values"], expected["pixel_values"])


def test_one_number_as_size(build_processor):
    """Transformers also takes `size=56`; the tokens fit the tiles."""
    processor = build_processor()
    inputs = processor(images=make_image(90, 130), text="<|image|>", size=56, return_tensors="pt")
    expected = processor(images=make_image(90, 130), text="<|image|>", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
