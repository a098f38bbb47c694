"""Find an installed Chromium and let it print pages, without a window."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NO_BROWSER = "no Chromium found: install chromium or google-chrome, or set CHROMIUM to its path"
# First the one without a window to draw, where a system packages it: the same engine at a bit more than half the cost.
COMMANDS = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
)  # fmt: skip
# Where macOS and Windows put a browser; the folders are there on their own system only.
FOLDERS = ("/Applications", "~/Applications", "$PROGRAMFILES", "${PROGRAMFILES(X86)}", "$LOCALAPPDATA")
PLACES = (
    "Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium",
    "Microsoft Edge.app/Contents/MacOS/Microsoft Edge", "Google/Chrome/Application/chrome.exe",
    "Chromium/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe",
)  # fmt: skip
# No sandbox: containers seldom allow one, and only our own files are opened. Their /dev/shm is small. Letters have the
# widths of their outlines, as on a phone; without a window Chromium would round them to pixels. The rest keeps it off
# the network; the resolver's rule does so for the pages as well, at no cost (playwright's own routing would switch the
# cache off).
ARGUMENTS = (
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--font-render-hinting=none",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
# Milliseconds of the page's own clock, which stands still while anything is under way: scripts are done by then.
PATIENCE = "--virtual-time-budget=10000"
LIMIT = 600  # seconds: nobody waits for it but where something hangs


class Unprinted(Exception):
    """There is no browser, or it did not do what it was asked for."""


def find_browser() -> str | None:
    """The path of a Chromium: $CHROMIUM, one on PATH, an application, or playwright's own; None without any."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    for command in COMMANDS:
        if path := shutil.which(command):
            return path
    for folder in map(os.path.expandvars, map(os.path.expanduser, FOLDERS)):
        for place in PLACES:
            if os.path.isfile(path := os.path.join(folder, place)):
                return path
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:  # it comes with the checks only
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and os.path.exists(path) else None


def require_browser() -> str:
    """The path of a Chromium, or the one message that says what to do."""
    if browser := find_browser():
        return browser
    raise Unprinted(NO_BROWSER)


def print_page(browser: str, page: Path, pdf: Path, final: bool = True) -> None:
    """Print a page, with headings as bookmarks; head and foot are the style sheet's.

    A print that is not `final` is laid out alike and has neither bookmarks nor tags for screen readers, which take a
    fifth of the time.
    """
    extent = "--generate-pdf-document-outline" if final else "--disable-pdf-tagging"
    pdf.unlink(missing_ok=True)
    run(browser, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", extent, PATIENCE, page.as_uri())
    if not pdf.is_file():
        raise Unprinted(f"{browser} printed nothing")


def run(browser: str, *arguments: str) -> None:
    """Run the browser with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # A page in a file may not use a font in another one without leave.
        ours = ("--headless", "--allow-file-access-from-files", f"--user-data-dir={profile}")
        command = [browser, *ours, *ARGUMENTS, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise Unprinted(f"{browser} was not done after {LIMIT} s") from None
        except OSError as error:
            raise Unprinted(f"{browser} does not start: {error}") from None
    if done.returncode:
        last = done.stderr.decode("utf8", "replace").strip().splitlines()[-1:]
        raise Unprinted(f"{browser} ended with status {done.returncode}: {' '.join(last)}")
