# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Small files of every image format that Pillow opens, and random damage to them."""

import functools
import io
import random
import struct

import numpy as np
import PIL.Image


SIZE = WIDTH, HEIGHT = 24, 18  # pixels
# Pillow only recognises these, or needs another program to decode them: they are always an error.
UNDECODABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Saved by Pillow: modes and options of each format.
SAVED = {
    "AVIF": [("RGB", {}), ("RGBA", {"lossless": True})],
    "BLP": [("P", {})],
    "BMP": [("1", {}), ("L", {}), ("P", {}), ("RGB", {}), ("RGBA", {})],
    "DDS": [
        ("L", {}),
        ("RGB", {}),
        ("RGBA", {}),
        ("RGBA", {"pixel_format": "DXT1"}),
        ("RGB", {"pixel_format": "BC5"}),
    ],
    "DIB": [("RGB", {})],
    "GIF": [("P", {}), ("RGBA", {"save_all": True})],
    "ICO": [("RGBA", {"sizes": [SIZE]}), ("RGBA", {"sizes": [SIZE], "bitmap_format": "bmp"})],
    "IM": [("RGB", {}), ("P", {}), ("F", {})],
    "JPEG": [("RGB", {}), ("L", {"progressive": True}), ("CMYK", {}), ("RGB", {"exif": True})],
    "JPEG2000": [("RGB", {}), ("LA", {}), ("I;16", {})],
    "MPO": [("RGB", {"save_all": True})],
    "MSP": [("1", {})],
    "PCX": [("1", {}), ("L", {}), ("P", {}), ("RGB", {})],
    "PNG": [
        ("1", {}),
        ("P", {"transparency": 3}),
        ("RGBA", {}),
        ("I;16", {}),
        ("RGB", {"exif": True, "save_all": True}),
    ],
    "PPM": [("1", {}), ("L", {}), ("RGB", {}), ("I;16", {}), ("F", {})],
    "QOI": [("RGB", {}), ("RGBA", {})],
    "SGI": [("L", {}), ("RGBA", {}), ("RGB", {"bpc": 2})],
    "SPIDER": [("F", {})],
    "TGA": [("RGBA", {}), ("RGB", {"compression": "tga_rle"}), ("P", {})],
    "TIFF": [
        *(("RGB", {"compression": name}) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        *((mode, {}) for mode in ("P", "RGBA", "CMYK", "I", "F", "I;16", "LAB")),
        ("1", {"compression": "group4"}),
        ("RGB", {"exif": True, "save_all": True}),
    ],
    "WEBP": [("RGB", {}), ("RGBA", {"lossless": True, "exif": True}), ("RGB", {"save_all": True})],
    "XBM": [("1", {})],
}


def _fits(image: PIL.Image.Image) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "2", "NAXIS1": str(WIDTH), "NAXIS2": str(HEIGHT)}
    header = "".join(f"{name:<8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END".ljust(80)
    return header.ljust(2880).encode() + image.convert("L").tobytes().ljust(2880, b"\0")


def _fli(image: PIL.Image.Image) -> bytes:
    pixels = image.convert("L").tobytes()
    chunk = struct.pack("<IH", 6 + len(pixels), 16) + pixels
    frame = struct.pack("<IHH8x", 16 + len(chunk), 0xF1FA, 1) + chunk
    header = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, WIDTH, HEIGHT, 8, 3, 5)
    return header.ljust(128, b"\0") + frame


def _icns(image: PIL.Image.Image) -> bytes:
    png = _encode(image.resize((16, 16)).convert("RGBA"), "PNG")
    return struct.pack(">4sI4sI", b"icns", 16 + len(png), b"icp4", 8 + len(png)) + png


def _iptc(image: PIL.Image.Image) -> bytes:
    fields = [((3, 20), bytes([WIDTH])), ((3, 30), bytes([HEIGHT])), ((3, 60), b"\1\0"), ((3, 120), b"\1")]
    fields.append(((8, 10), image.convert("L").tobytes()))
    return b"".join(struct.pack(">3BH", 0x1C, *tag, len(value)) + value for tag, value in fields)


def _mcidas(image: PIL.Image.Image) -> bytes:
    words = [0] * 65
    words[2], words[9], words[10], words[11], words[14], words[34] = 4, HEIGHT, WIDTH, 1, 1, 256
    return struct.pack("!64i", *words[1:]) + image.convert("L").tobytes()


def _pixar(image: PIL.Image.Image) -> bytes:
    header = bytearray(1024)
    header[:4] = b"\200\350\0\0"
    struct.pack_into("<HH", header, 416, HEIGHT, WIDTH)
    struct.pack_into("<HH", header, 424, 14, 2)
    return bytes(header) + image.tobytes()


def _psd(image: PIL.Image.Image) -> bytes:
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, HEIGHT, WIDTH, 8, 3)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + np.asarray(image).transpose(2, 0, 1).tobytes()


def _qoi(image: PIL.Image.Image) -> bytes:
    pixels = [b"\xfe" + bytes(pixel) for row in np.asarray(image) for pixel in row]
    return struct.pack(">4sIIBB", b"qoif", *SIZE, 3, 0) + b"".join(pixels) + bytes(7) + b"\1"


def _xpm(image: PIL.Image.Image) -> bytes:
    pixels = np.asarray(image.convert("L")) // 86
    colours = ["a c #000000", "b c #7f7f7f", "c c None"]
    rows = ["".join("abc"[value] for value in row) for row in pixels]
    lines = [f'"{text}",' for text in (f"{WIDTH} {HEIGHT} 3 1", *colours, *rows)]
    return "\n".join(["/* XPM */", "static char *image[] = {", *lines, "};"]).encode()


BUILT = {
    "BUFR": lambda image: b"BUFR" + bytes(60),
    "DCX": lambda image: struct.pack("<III", 0x3ADE68B1, 12, 0) + _encode(image, "PCX"),
    "EPS": lambda image: _encode(image, "EPS"),
    "CUR": lambda image: b"\0\0\2" + _encode(image, "ICO", sizes=[SIZE], bitmap_format="bmp")[3:],
    "FITS": _fits,
    "FLI": _fli,
    "FTEX": lambda image: struct.pack("<4s8i", b"FTEX", 0, *SIZE, 1, 1, 1, 32, 3 * WIDTH * HEIGHT) + image.tobytes(),
    "GBR": lambda image: struct.pack(">5I4sI2s", 30, 2, *SIZE, 1, b"GIMP", 9, b"a") + image.convert("L").tobytes(),
    "GRIB": lambda image: b"GRIB\0\0\0\1" + bytes(60),
    "HDF5": lambda image: b"\x89HDF\r\n\x1a\n" + bytes(60),
    "ICNS": _icns,
    "IMT": lambda image: f"width {WIDTH}\nheight {HEIGHT}\npixel n8\n\f".encode() + image.convert("L").tobytes(),
    "IPTC": _iptc,
    "MCIDAS": _mcidas,
    "MPEG": lambda image: b"\0\0\1\xb3\x01\x80\x12" + bytes(60),
    "PCD": lambda image: bytes(2048) + b"PCD_".ljust(1539, b"\0") + bytes(96 * 2048 - 3587 + 768 * 512 * 3 // 2),
    "PIXAR": _pixar,
    "PSD": _psd,
    "QOI": _qoi,
    "SUN": lambda image: struct.pack(">8I", 0x59A66A95, *SIZE, 24, 3 * WIDTH * HEIGHT, 1, 0, 0) + image.tobytes(),
    "WMF": lambda image: b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hHIH", 0, 0, *SIZE, 1440, 0, 0) + b"\1\0\t\0" * 20,
    "XPM": _xpm,
    "XVTHUMB": lambda image: b"P7 332\n#a comment\n%d %d 255\n" % SIZE + image.convert("L").tobytes(),
}


def _encode(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def image_files() -> list[tuple[str, str, bytes]]:
    """Format, description and bytes of intact files of every format that Pillow opens."""
    files = []
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    image = coarse.resize(SIZE, PIL.Image.Resampling.BICUBIC)
    PIL.Image.init()
    for kind, variants in SAVED.items():
        for mode, settings in variants:
            if kind not in PIL.Image.SAVE or kind not in PIL.Image.OPEN:
                continue  # this build of Pillow lacks the format
            given, options = image.convert("L") if mode in ("I;16", "F", "I") else image, dict(settings)
            given = given.convert("I").convert(mode) if mode == "I;16" else given.convert(mode)
            if options.pop("exif", False):
                options["exif"] = PIL.Image.Exif()
                options["exif"][0x0112] = 6
            if options.get("save_all"):
                options["append_images"] = [given.rotate(180)]
            files.append((kind, f"{mode} {settings}", _encode(given, kind, **options)))
    return files + [(kind, "", build(image)) for kind, build in BUILT.items()]


NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damages a file in one to four places, half of them in its first 200 bytes, where most formats have headers."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        end = max(1, len(data) if rng.random() < 0.5 else min(200, len(data)))
        offset = rng.randrange(end)
        kind = rng.choice(["bit", "bit", "byte", "byte", "number", "cut", "delete", "insert", "repeat", "zeros"])
        if kind == "bit" and data:
            data[offset] ^= 1 << rng.randrange(8)
        elif kind == "byte" and data:
            data[offset] = rng.randrange(256)
        elif kind == "number":
            size, order = rng.choice([1, 2, 4]), rng.choice(["little", "big"])
            data[offset : offset + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)
        elif kind == "cut":
            del data[offset:]
        elif kind == "delete":
            del data[offset : offset + rng.choice([1, 2, 4, 16])]
        elif kind == "insert":
            data[offset:offset] = rng.randbytes(rng.choice([1, 2, 4, 16]))
        elif kind == "repeat":
            data[offset:offset] = data[offset : offset + rng.choice([4, 16, 64])]
        elif kind == "zeros":
            length = rng.choice([2, 8, 64])
            data[offset : offset + length] = bytes(length)
    return bytes(data)
