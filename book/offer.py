"""Wake the links to files beside a site's pages, its PDF and the archive to read offline: `python book/offer.py SITE`.

The pages are rendered before such a file can be made of them. Until it is there, its link sleeps in a comment
(`{offer}` in book/_ext/fpo_landing.py), so that no site has a link to nothing.
"""

import html
import re
import sys
from pathlib import Path


def offer(site: Path) -> list[Path]:
    """Wake the links whose file is there; returns the pages that were changed."""
    changed = []
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf8")
        awake = re.sub(r"<!--offer ([^:]+):(.*?)-->", lambda found: _wake(site, found), text, flags=re.DOTALL)
        if awake != text:
            page.write_text(awake, encoding="utf8")
            changed.append(page)
    return changed


def _wake(site: Path, found: re.Match[str]) -> str:
    return found[2] if (site / html.unescape(found[1])).is_file() else found[0]


if __name__ == "__main__":
    offer(Path(sys.argv[1]))
