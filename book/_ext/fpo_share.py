"""What other sites and catalogues read of a page: its address, its picture, who wrote it, and a map of the site.

One setting says where the book is published, `html.baseurl` in _config.yml. From it come the canonical address, Open
Graph's, that of the pictures, and sitemap.xml; without it (an edition has none) a page claims no address and no
authors. Authors and dates are those of CITATION.cff. A chapter's picture is its key figure, at share/NAME.png.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from xml.sax.saxutils import escape as escape_xml

from docutils import nodes
from fpo_book import read_citation
from markupsafe import Markup
from PIL import Image, ImageOps
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

SIZE = (1200, 630)  # what the sites that show pictures of links ask for
FOLDER = "share"


def take_base(app: Sphinx, config: Config) -> None:
    """Open Graph's addresses begin with the book's own."""
    config.ogp_site_url = config.html_baseurl


def key_figure(doctree: nodes.document) -> nodes.image | None:
    """The image on a chapter's card."""
    for part in doctree.findall(nodes.paragraph):
        if "key-figure" in part["classes"]:
            return part.next_node(nodes.image)
    return None


def draw(source: Path, out: Path) -> None:
    """A figure on white, in the size and shape of a picture of a link."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as read:
        figure = read.convert("RGBA")
    page = Image.new("RGBA", SIZE, "white")
    figure = ImageOps.contain(figure, (SIZE[0] - 80, SIZE[1] - 60), Image.Resampling.LANCZOS)
    page.alpha_composite(figure, ((SIZE[0] - figure.width) // 2, (SIZE[1] - figure.height) // 2))
    page.convert("RGB").quantize(128).save(out, optimize=True)


def collect_pictures(app: Sphinx, env: BuildEnvironment) -> None:
    """Draw the chapters' pictures before the first page is written: a page without one shows the first chapter's.

    And read CITATION.cff, for all pages.
    """
    env.fpo_pictures, env.fpo_citation = {}, read_citation(env)
    if app.builder.name != "html":
        return
    for docname in env.collect_relations():
        image = key_figure(env.get_doctree(docname))
        if image is not None:
            name = f"{FOLDER}/{docname.rpartition('/')[2]}.png"
            draw(Path(app.srcdir, image["uri"]), Path(app.outdir, name))
            env.fpo_pictures[docname] = (name, image["alt"])


def add_tags(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The tags in a page's head."""
    if doctree is None:
        return
    base, tags = app.config.html_baseurl, []
    if not base:
        context["metatags"] = re.sub(r'<meta property="og:url"[^>]*>\n?', "", context["metatags"])
        return
    pictures = app.env.fpo_pictures
    picture = pictures.get(pagename) or next(iter(pictures.values()), None)
    if picture:
        name, alt = picture
        tags += [meta("property", "og:image", urljoin(base, name)), meta("property", "og:image:alt", alt)]
        tags += [meta("property", f"og:image:{side}", n) for side, n in zip(("width", "height"), SIZE, strict=True)]
        tags.append(meta("name", "twitter:card", "summary_large_image"))
    book = app.env.fpo_citation
    if book and (pagename == app.config.root_doc or pagename in pictures):
        record = describe(app, pagename, picture, book)
        tags += scholar(record, book)
        tags.append(Markup('<script type="application/ld+json">{}</script>').format(Markup(as_script(record))))
    context["metatags"] += "".join(f"{tag}\n" for tag in tags)


def meta(kind: str, name: str, content: str | int) -> Markup:
    return Markup('<meta {}="{}" content="{}" />').format(Markup(kind), name, content)


def as_script(record: dict[str, Any]) -> str:
    """JSON for a script: no text in it can end the script."""
    return json.dumps(record, ensure_ascii=False).replace("<", "\\u003c")


def describe(app: Sphinx, pagename: str, picture: tuple[str, str] | None, book: dict[str, Any]) -> dict[str, Any]:
    """A page in the words of schema.org: the book, or a chapter of it."""
    base = app.config.html_baseurl
    whole = {
        "@type": "Book",
        "name": book["title"],
        "author": [author(each) for each in book["authors"]],
        "datePublished": str(book["date-released"]),
        "inLanguage": app.config.language,
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "url": urljoin(base, app.builder.get_target_uri(app.config.root_doc)),
    }
    paper = book["references"][0]
    about = {
        "@type": "ScholarlyArticle",
        "name": paper["title"],
        "author": [author(each) for each in paper["authors"]],
        "url": paper["url"],
    }
    if pagename == app.config.root_doc:
        record = whole | {"description": book["abstract"], "about": about, "version": book["version"]}
    else:
        shared = {key: whole[key] for key in ("author", "datePublished", "inLanguage", "license")}
        url = urljoin(base, app.builder.get_target_uri(pagename))
        record = {
            "@type": "Chapter",
            "name": app.env.titles[pagename].astext(),
            **shared,
            "url": url,
            "isPartOf": whole,
            "about": about,
        }
    if picture:
        record["image"] = urljoin(base, picture[0])
    return {"@context": "https://schema.org", **record}


def author(given: dict[str, Any]) -> dict[str, Any]:
    if "name" in given:
        return {"@type": "Organization", "name": given["name"]}
    return {"@type": "Person", "name": f"{given['given-names']} {given['family-names']}"}


def scholar(record: dict[str, Any], book: Any) -> list[Markup]:
    """The tags that Google Scholar reads."""
    tags = {"citation_title": record["name"]}
    if record["@type"] == "Chapter":
        tags["citation_inbook_title"] = book["title"]
    tags |= {
        "citation_publication_date": record["datePublished"].replace("-", "/"),
        "citation_language": record["inLanguage"],
        "citation_fulltext_html_url": record["url"],
    }
    authors = [meta("name", "citation_author", each["name"]) for each in record["author"]]
    return [meta("name", name, content) for name, content in tags.items()] + authors


def finish(app: Sphinx, error: Exception | None) -> None:
    """The map of the site; and a page that is called like the book says so once in its title."""
    if error is not None or app.builder.name != "html":
        return
    page = Path(app.outdir, app.builder.get_target_uri(app.config.root_doc))
    text = page.read_text(encoding="utf8")
    name = re.search(r"<title>(.+?) (?:&#8212;|\N{EM DASH}) \1</title>", text)
    if name:
        page.write_text(text.replace(name[0], f"<title>{name[1]}</title>"), encoding="utf8")
    if base := app.config.html_baseurl:
        addresses = [urljoin(base, app.builder.get_target_uri(docname)) for docname in app.env.collect_relations()]
        lines = [f"<url><loc>{escape_xml(address)}</loc></url>" for address in addresses]
        head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        Path(app.outdir, "sitemap.xml").write_text("\n".join([head, *lines, "</urlset>\n"]), encoding="utf8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", take_base)
    app.connect("env-updated", collect_pictures)
    # After Open Graph's own tags.
    app.connect("html-page-context", add_tags, priority=900)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
