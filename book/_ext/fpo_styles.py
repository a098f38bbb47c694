"""One style sheet for the whole site, made of the many that the theme and its extensions bring.

What no page and no script names is left out. Fonts lie within the sheet, each cut down to the characters that are
shown: text and icons are there with the first paint, look the same on every machine and never move what stands.
"""

import base64
import io
import logging
import posixpath
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import tinycss2
from fontTools import subset, ttLib
from fontTools.varLib import instancer

NESTED = {"media", "supports", "container", "layer"}
# Features that a line of text needs. Contextual alternates are left out: they draw arrows in the place of "->".
FEATURES = ["ccmp", "kern", "locl", "mark", "mkmk", "tnum"]
# The weights that the book shows, and the one optical size; an axis that a font lacks is passed over.
AXES = {"wght": (400, 700), "opsz": 14}
PRIVATE = range(0xE000, 0xF900)
FACE = re.compile(r"@font-face\{(.*?)\}", re.DOTALL)
VARIABLE = re.compile(r"(?<=[{;])(--[\w-]+):(?:[^;{}\"']|\"[^\"]*\"|'[^']*')*(?:;|(?=\}))")
ADDRESS = re.compile(r"url\(\s*(['\"]?)(.*?)\1\s*\)")

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells each table


def combine(
    sheets: Iterable[tuple[str, str | None]],
    names: set[str],
    characters: set[str],
    read: Callable[[str], bytes],
    folder: str = "_static",
) -> str:
    """One sheet of several.

    `sheets` are pairs of a path and a media query (or nothing), `names` all tags, classes and ids that a page has or a
    script can make, `characters` those that are shown, `read` gives the bytes of a path, and `folder` is where the
    result will lie.
    """
    parts = []
    for path, media in sheets:
        part = shortened(path, names, read)
        parts.append(f"@media {media}{{{part}}}" if media and media != "all" else part)
    sheet = without_unread("\n".join(parts), names)
    shown = frozenset(characters | set(sheet))
    rules = FACE.sub("", sheet).replace("\\", "")

    def embed(face: re.Match[str]) -> str:
        named = re.search(r"font-family:\s*['\"]?(.*?)['\"]?\s*[;}]", face[0])
        assert named, f"a font without a name: {face[0]}"
        family = named[1].replace("\\", "")
        if not re.search(rf"(?<![\w-]){re.escape(family)}(?![\w-])", rules):
            return ""
        # Of a face's formats every browser of today reads the first.
        address = ADDRESS.search(face[0])
        assert address, f"a font without a file: {face[0]}"
        font = base64.b64encode(cut_font(read(urlsplit(address[2]).path), shown)).decode()
        rest = [part for part in face[1].split(";") if not part.startswith(("src:", "font-display:"))]
        return f"@font-face{{{';'.join(rest)};src:url(data:font/woff2;base64,{font}) format('woff2')}}"

    return '@charset "utf-8";\n' + ADDRESS.sub(lambda found: seen_from(folder, found), FACE.sub(embed, sheet))


def without_unread(sheet: str, names: set[str]) -> str:
    """A sheet without the variables that nothing reads, nor what only those read."""
    while True:
        read = set(re.findall(r"var\(\s*(--[\w-]+)", sheet)) | names

        def if_read(found: re.Match[str], read: set[str] = read) -> str:
            return found[0] if found[1] in read else ""

        left = VARIABLE.sub(if_read, sheet)
        if left == sheet:
            return sheet
        sheet = left


def shortened(path: str, names: set[str], read: Callable[[str], bytes]) -> str:
    """A sheet and those that it imports, shortened."""
    rules = tinycss2.parse_stylesheet(read(path).decode("utf8"), skip_whitespace=True)
    parts = []
    for rule in rules:
        if rule.type == "at-rule" and rule.lower_at_keyword == "import":
            (address,) = (token.value for token in rule.prelude if token.type in ("string", "url"))
            parts.append(shortened(beside(path, address), names, read))
        else:
            parts.append(shorten(rule, names, path))
    return "\n".join(filter(None, parts))


def shorten(rule: Any, names: set[str], path: str) -> str:
    """A rule as text without what cannot apply; nothing at all where no part can."""
    if rule.type == "comment":
        return f"/*{rule.value}*/" if rule.value.startswith("!") else ""  # a license
    if rule.type == "qualified-rule":
        selectors = [text(part) for part in split(rule.prelude) if can_apply(part, names)]
        return f"{','.join(selectors)}{{{declarations(rule.content, path)}}}" if selectors else ""
    if rule.type != "at-rule" or rule.lower_at_keyword == "charset":
        return ""  # browsers pass over what cannot be read, too
    head = f"@{rule.at_keyword} {text(rule.prelude)}".strip()
    if rule.content is None:
        return f"{head};"
    if rule.lower_at_keyword in NESTED:
        inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
        kept = "".join(shorten(part, names, path) for part in inner)
        return f"{head}{{{kept}}}" if kept else ""
    if rule.lower_at_keyword in ("font-face", "page", "property"):
        return f"{head}{{{declarations(rule.content, path)}}}"
    content = re.sub(r"\s+", " ", text(rule.content))  # key frames
    return f"{head}{{{content}}}"


def text(tokens: Iterable[Any]) -> str:
    return tinycss2.serialize(token for token in tokens if token.type != "comment").strip()


def split(prelude: Iterable[Any]) -> list[list[Any]]:
    """The selectors of a list."""
    parts: list[list[Any]] = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def can_apply(selector: Iterable[Any], names: set[str]) -> bool:
    """Whether all tags, classes and ids of a selector are known. What stands in brackets is taken to be."""
    before = None
    for token in selector:
        named = token.type == "hash" or (token.type == "ident" and before != ":")
        if named and token.value not in names and token.value.lower() not in names:
            return False
        before = token.value if token.type == "literal" else None
    return True


def declarations(content: Any, path: str) -> str:
    """The inner part of a rule, addresses of files made relative to the root."""

    def moved(match: re.Match[str]) -> str:
        return f'url("{match[2] if is_elsewhere(match[2]) else beside(path, match[2])}")'

    parts = []
    for part in tinycss2.parse_blocks_contents(content, skip_comments=True, skip_whitespace=True):
        if part.type == "declaration":
            value = ADDRESS.sub(moved, text(part.value))
            parts.append(f"{part.name}:{value}{'!important' if part.important else ''}")
        elif part.type != "error":
            parts.append(part.serialize())
    return ";".join(parts)


def is_elsewhere(address: str) -> bool:
    """Whether an address is no file's, relative to the sheet."""
    return bool(urlsplit(address).scheme) or address.startswith(("#", "/"))


def seen_from(folder: str, found: re.Match[str]) -> str:
    """An address relative to the root as a sheet in this folder names it."""
    return found[0] if is_elsewhere(found[2]) else f'url("{posixpath.relpath(found[2], folder)}")'


def beside(path: str, address: str) -> str:
    """The path that an address in the file of a path means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), address))


@cache
def cut_font(font: bytes, characters: Iterable[str]) -> bytes:
    """A font with the glyphs of these characters only, as WOFF2; the same bytes each time."""
    options = subset.Options(hinting=False, layout_features=FEATURES, notdef_outline=True, recalc_timestamp=False)
    loaded = ttLib.TTFont(io.BytesIO(font), recalcTimestamp=False)
    codes = {ord(character) for character in characters}
    if sum(code in PRIVATE for code in loaded.getBestCmap()) > len(loaded.getBestCmap()) / 2:  # icons
        codes &= set(PRIVATE)  # some stand in the place of letters
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=codes)
    cutter.subset(loaded)
    if "fvar" in loaded:
        axes = {axis.axisTag for axis in loaded["fvar"].axes}
        instancer.instantiateVariableFont(loaded, {tag: AXES[tag] for tag in AXES if tag in axes}, inplace=True)
    loaded.flavor = "woff2"
    out = io.BytesIO()
    loaded.save(out)
    return out.getvalue()
