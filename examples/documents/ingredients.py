# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
What documents are made of: fonts, words, names, prices, dates, tables and photographs that packages ship.

Every ingredient is split into `"train"` and `"test"`, so that documents to evaluate on have other fonts, words, names,
tables and photographs than documents to train on. The fonts of the test split come from packages of PyPI (see
`TEST_FONT_PACKAGES`). Those of the training split are all others that are installed; `fonts.txt` lists Debian packages
with about 900 of them.
"""

import functools
import importlib.util
import zlib
from collections.abc import Callable
from pathlib import Path

import bokeh_sampledata
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageFont
import vega_datasets
from babel.dates import format_date
from babel.numbers import format_currency, format_decimal
from faker import Faker
from fontTools.ttLib import TTFont, TTLibError
from matplotlib import font_manager
from sklearn.datasets import load_wine

from ..printed_numbers.data import HAIRLINE, TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photograph


TRAIN, TEST = "train", "test"
TEST_FONT_PACKAGES = (
    "font_caladea",
    "font_fredoka_one",
    "font_hanken_grotesk",
    "font_manrope",
    "font_roboto",
    "font_source_sans_pro",
    "font_source_serif_pro",
)
TEST_FAMILIES = ("caladea", "fredoka", "hanken", "manrope", "roboto", "source sans", "source serif")
# Families that draw something other than the letters they are asked for, or the same letters in two cases.
NO_TEXT = ("cmex10", "cmsy10", "cmmi10", "Dingbats", "D050000L", "Keyboard", "Symbol", "DSEG", "Blank", "OpenSymbol")

LATIN = "äöüßéèêëàâáåæçñóòôõøúùûíìîïłąęśćżźńőűščřžýĄÄÖÜÉÈÀÅÆÇÑÓØÚŁŚŻŠČŘŽ€£¥"
GREEK = "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ"
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяіїєґАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯІЇЄ"
ASCII = "".join(map(chr, range(33, 127)))
CHARACTERS = ASCII + LATIN + GREEK + CYRILLIC

LATIN_LOCALES = ("en_US", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "cs_CZ")
SCRIPTS = {"Latin": LATIN_LOCALES, "Greek": ("el_GR",), "Cyrillic": ("ru_RU", "uk_UA")}
LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "pl_PL", "it_IT", "nl_NL")
UNORDERED = ("it_IT", "city")  # faker takes these from a set, whose order is another one in every run
CURRENCIES = ("USD", "GBP", "EUR", "EUR", "PLN", "CHF")
# Space characters other than U+0020, which typography puts into numbers.
SPACES = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2212": "-", "\u2019": "'"})


def is_test(text: str) -> bool:
    """Whether a word, name or family belongs to the test split: a fifth of all do, whatever the machine."""
    return zlib.crc32(text.encode()) % 5 == 0


def _split(texts: list[str], split: str) -> list[str]:
    return [text for text in texts if is_test(text) == (split == TEST)]


# Fonts


@functools.cache
def fonts(split: str) -> dict[str, list[str]]:
    """Paths of the fonts of a split that draw all of ASCII, by their family."""
    if split == TEST:
        folders = [Path(importlib.util.find_spec(name).origin).parent for name in TEST_FONT_PACKAGES]
        paths = [str(path) for folder in folders for path in folder.rglob("*.[to]tf")]
    else:
        shipped = Path(font_manager.__file__).parent / "mpl-data" / "fonts" / "ttf"
        paths = [*font_manager.findSystemFonts(), *map(str, shipped.glob("*.ttf"))]
    found: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        family = _family(path)
        if family and (split == TEST or not family.lower().startswith(TEST_FAMILIES)):
            found.setdefault(family, []).append(path)
    return found


def _family(path: str) -> str | None:
    """The family of a font that draws all of ASCII, each character in its own way and dark enough; else `None`."""
    try:
        font = PIL.ImageFont.truetype(path, 24)
        family = font.getname()[0] or ""
        masks = [bytes(font.getmask(character)) for character in ASCII]
    except (OSError, ValueError):  # not every file can be drawn
        return None
    letters = [bytes(font.getmask(character)) for character in "ABDEGQRabdegqr0123456789\uffff"]
    is_text = len(set(letters)) == len(letters) and all(max(mask, default=0) >= HAIRLINE for mask in masks)
    return family if is_text and not any(name in family for name in NO_TEXT) else None


@functools.cache
def characters_of(path: str) -> frozenset[str]:
    """The characters of `CHARACTERS` that a font has."""
    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            table = font.getBestCmap() or {}
    except (TTLibError, OSError, KeyError, AssertionError):
        return frozenset(ASCII)
    return frozenset(character for character in CHARACTERS if ord(character) in table)


def choose_font(rng: np.random.Generator, split: str, text: str = "") -> str:
    """A random font of the split that has all characters of `text`: first a family, then one of its fonts."""
    families = list(fonts(split).values())
    needed = set(text) - set(ASCII) - {" "}
    for _ in range(50):
        family = families[rng.integers(len(families))]
        path = family[rng.integers(len(family))]
        if not needed or needed <= characters_of(path):
            return path
    return str(Path(font_manager.__file__).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


# Words and names


@functools.cache
def words(split: str, script: str = "Latin", longest: int = 9) -> list[str]:
    """Words of several languages in a script, of 3 to `longest` letters, as `faker` has them."""
    known = set(CHARACTERS)
    found: set[str] = set()
    for locale in SCRIPTS[script]:
        fake = Faker(locale)
        found |= set(fake.get_words_list())
    return _split(sorted(word for word in found if 3 <= len(word) <= longest and set(word) <= known), split)


@functools.cache
def names(split: str, kind: str, longest: int = 14) -> list[str]:
    """
    Names of a kind that `faker` makes in several locales: `"first_name"`, `"last_name"`, `"city"`, `"company"` or
    `"job"`.
    """
    known = set(CHARACTERS) | {" "}
    found: set[str] = set()
    for locale in LOCALES:
        if (locale, kind) == UNORDERED:
            continue
        fake = Faker(locale)
        fake.seed_instance(0)
        found |= {getattr(fake, kind)() for _ in range(400)}
    return _split(sorted(name for name in found if len(name) <= longest and set(name) <= known), split)


def choice(rng: np.random.Generator, values: list[str]) -> str:
    return values[rng.integers(len(values))]


def sample(rng: np.random.Generator, values: list[str], count: int) -> list[str]:
    """`count` different values in random order."""
    return [values[index] for index in rng.choice(len(values), min(count, len(values)), replace=False)]


# Prices and dates


def price_writer(rng: np.random.Generator) -> Callable[[float], str]:
    """A function that writes amounts in a random locale, with or without a currency."""
    locale = LOCALES[rng.integers(len(LOCALES))]
    currency = CURRENCIES[rng.integers(len(CURRENCIES))]
    if rng.random() < 0.5:
        return lambda amount: format_decimal(amount, "#,##0.00", locale=locale).translate(SPACES)
    return lambda amount: format_currency(amount, currency, locale=locale).translate(SPACES)


def date(rng: np.random.Generator) -> str:
    """A date between 1990 and 2029 as people of a random locale write it."""
    locale = LOCALES[rng.integers(len(LOCALES))]
    day = pd.Timestamp("1990-01-01") + pd.Timedelta(days=int(rng.integers(0, 14600)))
    style = choice(rng, ["short", "medium", "yyyy-MM-dd", "dd.MM.yyyy", "MM/dd/yyyy"])
    text = format_date(day, style, locale=locale).translate(SPACES)
    return text if set(text) <= set(CHARACTERS) | {" "} else day.strftime("%d.%m.%Y")


# Tables


@functools.cache
def tables(split: str) -> list[pd.DataFrame]:
    """
    Tables of real data: the first column names the row, the others hold numbers. Those of the test split are other
    data sets than those of the training split.
    """
    folder = Path(bokeh_sampledata.__file__).parent / "_data"
    vega = vega_datasets.data
    wine = load_wine(as_frame=True).frame
    wine.insert(0, "wine", [f"No {number}" for number in range(1, len(wine) + 1)])
    found = {
        TRAIN: [
            vega.cars()[["Name", "Miles_per_Gallon", "Cylinders", "Horsepower", "Weight_in_lbs"]],
            vega.barley()[["variety", "yield", "year"]],
            vega.airports()[["iata", "latitude", "longitude"]],
            vega.us_employment()[["month", "nonfarm", "construction", "manufacturing", "information"]],
            pd.read_csv(folder / "percent-bachelors-degrees-women-usa.csv"),
            wine[["wine", "alcohol", "malic_acid", "ash", "magnesium", "hue"]],
        ],
        TEST: [
            pd.read_csv(folder / "elements.csv")[["symbol", "atomic number", "atomic mass", "density"]],
            pd.read_csv(folder / "us_marriages_divorces.csv")[["Year", "Marriages_per_1000", "Divorces_per_1000"]],
            vega.wheat()[["year", "wheat", "wages"]],
            vega.burtin()[["Bacteria", "Penicillin", "Streptomycin", "Neomycin"]],
        ],
    }
    return [_clean(table) for table in found[split]]


def _clean(table: pd.DataFrame) -> pd.DataFrame:
    """Short cells: rows without missing values, names cut at a word, numbers with at most four digits."""
    for column in table.columns[1:]:
        table = table.assign(**{column: pd.to_numeric(table[column], errors="coerce")})
    table = table.dropna().reset_index(drop=True)
    table.columns = [str(column).replace("_", " ").split(" in ")[0].strip()[:10].strip().title() for column in table]
    first = table.columns[0]
    values = {first: [str(value).split(" 00:00")[0][:12].strip() for value in table[first]]}
    for column in table.columns[1:]:
        values[column] = [f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}" for value in table[column]]
    cleaned = pd.DataFrame(values).drop_duplicates(first)
    known = set(CHARACTERS) | {" "}
    return cleaned[[set(name) <= known for name in cleaned[first]]].reset_index(drop=True)


# Photographs


@functools.cache
def photographs(split: str) -> list[PIL.Image.Image]:
    """Photographs of scikit-image and scikit-learn."""
    return [load_photograph(name) for name in (TRAIN_PHOTOGRAPHS if split == TRAIN else TEST_PHOTOGRAPHS)]
