"""Light pages: one style sheet with its fonts for the site, scripts behind the text, figures as they are scrolled to.

Runs when all else has written its pages. What a page does with less is left out: the theme's icon script (1.5 MB, in
the way of the first paint) draws what the icon font in the sheet draws, too.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import fpo_styles
from bs4 import BeautifulSoup
from fpo_pages import mend
from PIL import Image
from sphinx.application import Sphinx

SHEET = "_static/site.css"
FIRST_SCREEN = "first-screen"  # what a browser waits for before it paints
ICON_SCRIPT = "all.min.js"
# Tags, classes and ids that stand on no page yet: a formula's are drawn later, and the root's are set by scripts.
LATER = {"svg", "math", "mjx-container", "mjx-assistive-mml"}
WORD = re.compile(r"(?:--)?[A-Za-z_][\w-]*")
WRITES = re.compile(r"document\.write\(`([^`$]*)`\);?")
# The theme resolves "auto" in a script behind the text, so that a dark page would begin as a light one.
THEME = """
if (!["light", "dark"].includes(document.documentElement.dataset.theme))
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
"""

# Letters in a sheet are read a moment after it: a first paint with other ones would move as they come.
LETTERS = """
document.documentElement.dataset.text = "coming";
document.fonts.load("1em Inter").finally(() => delete document.documentElement.dataset.text);
"""


class Site:
    """The pages and files that a builder has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {
            path: BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")
            for path in sorted(folder.rglob("*.html"))
            if path.relative_to(folder).parts[0] != "_static"
        }

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    def path(self, page: Path, address: str) -> str | None:
        """The path below the folder that an address on a page means; None for one that means no file of the site."""
        if urlsplit(address).scheme or urlsplit(address).netloc or not urlsplit(address).path:
            return None
        base = page.relative_to(self.folder).as_posix()
        path = unquote(urlsplit(urljoin(f"https://site/{base}", address)).path).lstrip("/")
        return path if (self.folder / path).is_file() else None

    def address(self, page: Path, path: str) -> str:
        """How a page names a file of the site."""
        return "../" * (len(page.relative_to(self.folder).parts) - 1) + path

    def write(self) -> None:
        for path, soup in self.pages.items():
            path.write_text(str(soup), encoding="utf8")


def finish(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        lighten(Path(app.outdir), mend)


def lighten(folder: Path, first: Callable[[BeautifulSoup], None] | None = None) -> None:
    """Make the pages of a folder light, in place; what should be done to each of them `first` is done on the way."""
    site = Site(folder)
    for soup in site.pages.values():
        if first:
            first(soup)
        for script in soup.select("script[src]"):
            if urlsplit(script["src"]).path.endswith(ICON_SCRIPT):
                script.decompose()
        write_out(soup)
        move_scripts(soup)
        wait_for_first_screen(soup)
        set_theme_early(soup)
    for page, soup in site.pages.items():
        set_sizes(site, page, soup)
    merge_sheets(site)
    site.write()


def write_out(soup: BeautifulSoup) -> None:
    """What a script would write in its own place stands there; book/_static/light.css hides it where no script runs."""
    for script in soup.find_all("script"):
        written = WRITES.fullmatch((script.string or "").strip())
        if written:
            content = BeautifulSoup(written[1], "html.parser")
            for tag in content.find_all(True, recursive=False):
                tag["class"] = [*tag.get("class", ()), "needs-script"]
            script.replace_with(content)


def move_scripts(soup: BeautifulSoup) -> None:
    """Scripts that would hold up the page stand at its end, in their order."""
    if soup.head is None or soup.body is None:
        return
    for hint in soup.head.select("link[rel=preload]"):
        hint.decompose()
    first = soup.body.find("script", src=True)
    for script in soup.head.find_all("script"):
        waits = script.has_attr("src") and not (script.has_attr("defer") or script.has_attr("async"))
        follows = not script.has_attr("src") and "DOCUMENTATION_OPTIONS" in (script.string or "")
        module = script.get("type", "text/javascript") != "text/javascript"
        if (waits or follows) and not module:
            script.extract()
            first.insert_before(script) if first else soup.body.append(script)


def wait_for_first_screen(soup: BeautifulSoup) -> None:
    """Nothing is painted before the first section has begun: on a slow line the words before it moved as more came."""
    heading = soup.select_one("article h2")
    if soup.head is None or heading is None:
        return
    heading.insert_before(soup.new_tag("span", id=FIRST_SCREEN))
    soup.head.append(soup.new_tag("link", rel="expect", href=f"#{FIRST_SCREEN}", blocking="render"))


def set_theme_early(soup: BeautifulSoup) -> None:
    """The theme is known before the first paint, and without a script it is the light one."""
    if soup.html is None or not soup.html.has_attr("data-theme"):
        return
    if soup.html["data-theme"] == "auto":
        soup.html["data-theme"] = "light"
    before = soup.find("script", attrs={"data-cfasync": True})
    if before and "prefers-color-scheme" not in before.string:
        before.string += THEME


def set_sizes(site: Site, page: Path, soup: BeautifulSoup) -> None:
    """A picture's place is kept before it is there, and all but the first are fetched as a reader comes near."""
    for number, image in enumerate(soup.select("article img")):
        image["decoding"] = "async"
        if number:
            image["loading"] = "lazy"
        path = site.path(page, image.get("src", ""))
        size = size_of(site.folder / path) if path else None
        if size and not (image.has_attr("width") or image.has_attr("height")):
            image["width"], image["height"] = size


def size_of(file: Path) -> tuple[int, ...] | None:
    """Width and height of a picture in pixels; None for what has none."""
    if file.suffix == ".svg":
        head = file.read_text(encoding="utf8")[:2000]
        box = re.search(r"viewBox\s*=\s*\"\s*\S+\s+\S+\s+([\d.]+)\s+([\d.]+)", head)
        return tuple(round(float(side)) for side in box.groups()) if box else None
    with Image.open(file) as image:
        return image.size


def merge_sheets(site: Site) -> None:
    """Put the sheets that every page links into one, and take away the files that this leaves without use."""
    linked = {}
    for page, soup in site.pages.items():
        links = {}
        for link in soup.select("link[rel=stylesheet][href]"):
            path = site.path(page, link["href"])
            if path and path != SHEET:
                links[path] = link
        if links:
            linked[page] = links
    shared = [
        (path, link.get("media")) for path, link in next(iter(linked.values()), {}).items()
        if all(path in links for links in linked.values())
    ]  # fmt: skip
    if not shared:
        return
    used = set()

    def read(path: str) -> bytes:
        used.add(path)
        return site.read(path)

    sheet = fpo_styles.combine(shared, *names_and_characters(site), read)
    (site.folder / SHEET).write_text(sheet, encoding="utf8")
    version = hashlib.sha256(sheet.encode()).hexdigest()[:8]
    for page, links in linked.items():
        first, *others = (links[path] for path, _ in shared)
        first.attrs = {"rel": "stylesheet", "href": f"{site.address(page, SHEET)}?v={version}"}
        for link in others:
            link.decompose()
        script = site.pages[page].new_tag("script")  # behind a sheet it runs when that is there
        script.string = LETTERS
        first.insert_after(script)
    for path in used:
        (site.folder / path).unlink()
    for left in site.folder.glob("_static/**/*.map"):
        left.unlink()
    for left in site.folder.glob("_static/vendor/fontawesome/*/*/"):
        shutil.rmtree(left)


def names_and_characters(site: Site) -> tuple[set[str], set[str]]:
    """Names that a selector could mean, and the characters of all pages."""
    names, characters = set(LATER), set(map(chr, range(0x20, 0x7F)))
    scripts: set[str] = set()
    for page, soup in site.pages.items():
        characters |= set(soup.get_text())
        for tag in soup.find_all(True):
            names.add(tag.name)
            names.update(tag.get("class", ()))
            names.add(tag.get("id", ""))
            names.update(WORD.findall(tag.get("style", "")))
            for attribute in ("title", "aria-label", "placeholder"):
                characters |= set(tag.get(attribute, ""))
            if tag.name == "script":
                names.update(WORD.findall(tag.string or ""))
                if path := site.path(page, tag.get("src", "")):
                    scripts.add(path)
    for path in scripts:
        text = site.read(path).decode("utf8")
        names.update(WORD.findall(text))
        if "searchindex" not in path:
            characters |= {character for character in text if character.isprintable()}
    return names, {character for character in characters if character.isprintable()}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", finish, priority=900)  # after all that writes into pages
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
