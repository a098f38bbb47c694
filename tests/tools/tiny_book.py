"""The sources of a tiny book with the real driver, extensions and settings."""

import json
import shutil
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = """import json, sys
from pathlib import Path
total = json.loads(Path(sys.argv[1], "{first}.json").read_text())["results"]["total"]
Path(sys.argv[2]).write_text(f'<svg xmlns="http://www.w3.org/2000/svg"><text>{{total}}</text></svg>')
"""
VALIDATE = """if not isinstance(steps, int) or steps <= 0:
    raise ValueError(f"steps = {steps!r}: expected a positive whole number")"""
WORK = """import sys
from tqdm import tqdm
assert steps < 100, "too many steps"
for _ in tqdm(range(steps)):
    print("step")
print("warned", file=sys.stderr)
total = steps * fpo.FACTOR"""
RESULTS = """claim = {{"id": "x", "statement": "$x$", "source": "us", "value": "1", "verdict": "new", "rule": ""}}
content = {{"notebook": "{name}", "parameters": {{"steps": steps}}, "environment": {{}}}}
content |= {{"results": {{"total": total}}, "claims": [claim]}}
if results_path:
    Path(results_path).write_text(json.dumps(content))
total"""


def notebook(name, parameters="steps = 2"):
    """A notebook that keeps the contract, with these lines of parameters."""
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        text(f"# The {name} game"),
        code("import json\nfrom pathlib import Path\nimport fpo"),
        code(f'{parameters}\nresults_path = ""', metadata={"tags": ["parameters"]}),
        code(VALIDATE, metadata={"tags": ["validate"]}),
        code(WORK),
        text(f"(claims-{name})=\n## Claims\n\nSo it is."),
        code(RESULTS.format(name=name)),
        code("# nothing to see"),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"{name}-{number}"
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def make(root, names=("first", "second"), parameters="steps = 2"):
    """Write a book with these notebooks into a folder that is not there yet; its path."""
    ignore = shutil.ignore_patterns("__pycache__", "*.md", "*.bib")
    shutil.copytree(ROOT / "book", root / "book", ignore=ignore)
    shutil.copyfile(ROOT / "_config.yml", root / "_config.yml")
    for folder in ("fpo", "notebooks/results", "notebooks/parameters", "notebooks/runs"):
        (root / folder).mkdir(parents=True)
    for module in ("claims.py", "stats.py"):  # the extensions ask them
        shutil.copyfile(ROOT / "fpo" / module, root / "fpo" / module)
    chapters = [f"notebooks/{name}" for name in names]
    texts = {
        "_toc.yml": json.dumps(
            {
                "format": "jb-book",
                "root": "book/index",
                "chapters": [{"file": file} for file in (*chapters, "book/claims")],
            }
        ),
        "CHANGELOG.md": "# Changes\n",
        "constraints.txt": "",
        "book/index.md": f"# Tiny\n\nThe total is {{result}}`{names[0]}/total|d`.\n",
        "book/claims.md": "# Claims\n\n```{claims-table}\n```\n",
        "book/headline.py": HEADLINE.format(first=names[0]),
        "book/references.bib": "",
        "fpo/__init__.py": "FACTOR = 3\n",
        "notebooks/parameters/long.yaml": "steps: 9\n",
        "notebooks/runs/run.csv": "1\n",
    }
    for file, text in texts.items():
        (root / file).write_text(text)
    for name in names:
        nbformat.write(notebook(name, parameters), root / "notebooks" / f"{name}.ipynb")
    return root
