"""What a reader sees wrong on a valid page: cut-off code, wide pictures, pale captions, what is out of reach."""

CLIPPED = "clipped code"
IMAGE = "image wider than its column"
CAPTION = "pale caption"
FORMULA = "formula out of reach"
TARGET = "target too small for a finger"

# Lists pairs of a kind and a detail at the width that the page has. Asked for once everything is unfolded.
FIND = """
([desktop, CLIPPED, IMAGE, CAPTION, FORMULA, TARGET]) => {
  const faults = [];
  const short = node => node.textContent.replace(/\\s+/g, " ").trim().slice(0, 80);
  const shape = node => node.cloneNode().outerHTML.slice(0, 120);
  const scrolls = node => /auto|scroll/.test(getComputedStyle(node).overflowX);
  const add = (kind, node, detail) => faults.push([kind, `${detail} at ${innerWidth} px: ${node}`]);

  // On a phone program text scrolls; on a desktop it fits, and so does what a program printed.
  for (const code of desktop ? document.querySelectorAll("main .highlight pre") : []) {
    const box = code.closest(".scrolling") || code;
    if (!code.checkVisibility() || box.scrollWidth <= box.clientWidth + 1) continue;
    const lines = code.textContent.split("\\n"), longest = Math.max(...lines.map(line => line.length));
    add(CLIPPED, short(code), `${longest} columns, ${box.scrollWidth} px in ${box.clientWidth}`);
  }

  // Every box around a picture has room for it, up to one that scrolls.
  for (const image of document.querySelectorAll("main img, main svg:not(svg svg, mjx-container svg)")) {
    const wide = image.getBoundingClientRect().width;
    if (!image.checkVisibility({visibilityProperty: true})) continue;
    for (let box = image.parentElement; !scrolls(box) && !box.matches("body"); box = box.parentElement) {
      const style = getComputedStyle(box);
      if (/^(inline|contents)/.test(style.display)) continue;
      const room = box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
      if (wide <= room + 1) continue;
      add(IMAGE, shape(image), `${Math.round(wide)} px in ${Math.round(room)} of ${shape(box)}`);
      break;
    }
  }

  // Letters of less than normal weight are hairlines in some fonts, whatever contrast their colour has.
  const captions = ":is(figcaption, caption, .caption-text)";
  for (const node of document.querySelectorAll(`${captions}, ${captions} *`)) {
    const words = [...node.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim());
    const {fontWeight} = getComputedStyle(node);
    if (words && fontWeight < 400 && node.checkVisibility()) add(CAPTION, short(node), `weight ${fontWeight}`);
  }

  // A formula on a line of its own fits, or scrolls in a box that takes the focus.
  for (const formula of document.querySelectorAll("main mjx-container[display=true]")) {
    const drawing = formula.querySelector("svg");
    if (!drawing || !formula.checkVisibility()) continue;
    let box = formula;
    while (box !== document.body && getComputedStyle(box).overflowX === "visible") box = box.parentElement;
    if (box === document.body || (scrolls(box) && box.tabIndex >= 0)) continue;
    const inner = drawing.getBoundingClientRect(), outer = box.getBoundingClientRect();
    if (inner.right > outer.right + 1 || inner.left < outer.left - 1)
      add(FORMULA, shape(box), `${Math.round(inner.width)} px in ${Math.round(outer.width)}`);
  }

  // On a phone what is pressed is 44 px high; links in a text are as high as its lines, marks of claims lead there too.
  const pressed = ":is(button, select, summary, input, .facet a, .strip-bar a, .ways-in a)";
  for (const target of desktop ? [] : document.querySelectorAll(`article ${pressed}`)) {
    if (!target.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const boxes = [target, ...(/checkbox|radio/.test(target.type) ? target.labels : [])];
    const high = Math.max(...boxes.map(box => box.getBoundingClientRect().height));
    if (high < 43.5) add(TARGET, shape(target), `${Math.round(high)} px high`);
  }
  return faults;
}
"""
KINDS = (CLIPPED, IMAGE, CAPTION, FORMULA, TARGET)
