"""What a page costs a reader before scrolling: bytes and requests, and on a slow phone the time to the first paint.

    make weight                        every page of the book as rendered
    python tests/tools/weight.py FOLDER

Pages come from a server on loopback that compresses texts, into a browser as large as a phone with an empty cache. The
slow phone is Chromium's: 1.6 Mbit/s, 150 ms until an answer begins, a processor at a quarter of its speed. Times are
those of the machine that measures; bytes and requests are the same on every one.
"""

from __future__ import annotations

import functools
import gzip
import io
import statistics
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import Fault, pages

WEIGHT = "weight"
SHIFT = "layout shift"
# What a page may cost: kB (1,000 bytes, compressed, with the answers' heads), requests, and seconds to the first paint.
KILOBYTES, REQUESTS, SECONDS = 1200, 30, 2.5
# How much may move in all, as browsers count it (0.1 is called good): a pixel here and there.
SHIFTED = 0.005
PHONE = {"width": 390, "height": 844}
DOWN, UP, LATENCY, SLOWER = 1.6e6 / 8, 750e3 / 8, 150, 4  # bytes a second, milliseconds, times
COMPRESSED = {".css", ".html", ".js", ".json", ".svg", ".txt", ".xml"}
WATCH = """
window.shifted = [];
new PerformanceObserver(list => {
  for (const entry of list.getEntries())
    window.shifted.push({by: entry.value, what: entry.sources.map(source =>
      source.node && source.node.nodeType === 1 ? source.node.cloneNode().outerHTML.slice(0, 80) : "text")});
}).observe({type: "layout-shift", buffered: true});
"""
# Letters are there, then two frames, and what they made the page ask for is under way.
FRAMES = """
document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))))
"""
PAINTED = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"


@dataclass(frozen=True)
class Weight:
    """What one page costs before a reader scrolls."""

    page: str
    kilobytes: float
    requests: int
    paint: float  # seconds until the first text or picture is there
    shifts: tuple[str, ...]  # what moved after it was there


@functools.cache
def compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 9, mtime=0)


class _Compressing(pages._Handler):
    """Serves texts as gzip, as a host of pages does."""

    def send_head(self):
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if path.suffix not in COMPRESSED or not path.is_file():
            return super().send_head()
        data = compressed(path)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return io.BytesIO(data)


def weigh(browser: pages.Browser, folder: str | Path, slow: bool = False, repeats: int = 1) -> list[Weight]:
    """Open every page of a folder with an empty cache; the median of the paints if there are several."""
    folder = Path(folder).resolve()
    compressed.cache_clear()  # the files of an earlier call may have changed
    found = []
    with pages.served(folder, _Compressing) as address:
        for path in pages.page_paths(folder):
            if not pages.read_page(folder, path).redirects:
                tries = [_weigh(browser, address, path, slow) for _ in range(repeats)]
                paint = statistics.median(weight.paint for weight in tries)
                found.append(Weight(path, tries[0].kilobytes, tries[0].requests, paint, tries[0].shifts))
    return found


def _weigh(browser: pages.Browser, address: str, path: str, slow: bool) -> Weight:
    sizes: dict[str, float] = {}
    begun: set[str] = set()
    ended: set[str] = set()
    with closing(browser._chromium.new_context(viewport=PHONE, is_mobile=True, has_touch=True)) as context:
        context.set_default_timeout(pages.LIMIT * 1000)
        context.add_init_script(WATCH)
        page = context.new_page()
        line = context.new_cdp_session(page)
        within = set()  # what lies in a file that has been weighed

        def on_begin(event):
            begun.add(event["requestId"])
            if event["request"]["url"].startswith("data:"):
                within.add(event["requestId"])

        def on_end(event):
            ended.add(event["requestId"])
            if event["requestId"] not in within:
                sizes[event["requestId"]] = event.get("encodedDataLength", 0)

        line.on("Network.requestWillBeSent", on_begin)

        line.on("Network.loadingFinished", on_end)
        line.on("Network.loadingFailed", on_end)
        line.send("Network.enable")
        if slow:
            conditions = {"offline": False, "latency": LATENCY, "downloadThroughput": DOWN, "uploadThroughput": UP}
            line.send("Network.emulateNetworkConditions", conditions)
            line.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        page.goto(address + path, wait_until="load")
        settled = 0
        while settled < 2:
            page.evaluate(FRAMES)
            settled = settled + 1 if begun <= ended else 0
        (paint,) = page.evaluate(PAINTED)
        shifts = [f"{shift['by']:.4f} {', '.join(shift['what'])}" for shift in page.evaluate("window.shifted")]
    return Weight(path, sum(sizes.values()) / 1000, len(sizes), paint / 1000, tuple(shifts))


def faults(weights: list[Weight]) -> list[Fault]:
    """Pages that cost more than they may, or in which something moves. Times are not judged: machines differ."""
    found = []
    for weight in weights:
        if weight.kilobytes > KILOBYTES:
            found.append(Fault(weight.page, WEIGHT, f"{weight.kilobytes:.0f} kB before scrolling, over {KILOBYTES}"))
        if weight.requests > REQUESTS:
            found.append(Fault(weight.page, WEIGHT, f"{weight.requests} requests before scrolling, over {REQUESTS}"))
        if sum(float(what.split()[0]) for what in weight.shifts) > SHIFTED:
            found.append(Fault(weight.page, SHIFT, "; ".join(weight.shifts)))
    return found


def main(folder: str) -> int:
    executable = pages.find_browser()
    if executable is None:
        print(pages.NO_BROWSER, file=sys.stderr)
        return 1
    with pages.Browser(executable) as browser:
        weights = weigh(browser, folder, slow=True, repeats=3)
    wide = max(len(weight.page) for weight in weights)
    print(f"{'page':{wide}}  first paint, s  kB  requests  shifts")
    for weight in weights:
        late = " (late)" if weight.paint > SECONDS else ""
        cost = f"{weight.kilobytes:4.0f} {weight.requests:9d} {len(weight.shifts):7d}"
        print(f"{weight.page:{wide}} {weight.paint:15.2f}{cost}{late}")
    found = faults(weights)
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
