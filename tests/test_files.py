"""Files that are there in full or not at all: what is replaced, what is refused, and what a checksum notices."""

import errno
import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from fpo import files

UNIX = pytest.mark.skipif(os.name != "posix", reason="modes, links and devices of Unix")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@UNIX
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, umask):
    files.save_json(tmp_path / "new.json", {})
    assert mode(tmp_path / "new.json") == 0o666 & ~umask


@UNIX
@pytest.mark.parametrize("before", [0o600, 0o644, 0o660, 0o755])
def test_a_file_that_is_there_keeps_its_mode(tmp_path, umask, before):
    path = tmp_path / "old.json"
    path.write_text("{}")
    path.chmod(before)
    files.save_json(path, {"a": 1})
    assert mode(path) == before and json.loads(path.read_text()) == {"a": 1}


@UNIX
@pytest.mark.parametrize("there", [True, False], ids=["target there", "target still to be made"])
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path, there):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.json", tmp_path / "link.json"
    link.symlink_to(Path("far", "target.json"))
    if there:
        target.write_text("{}")
    files.save_json(link, {"a": 1})
    assert link.is_symlink() and json.loads(target.read_text()) == {"a": 1}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link.json", "target.json"]


def strange(kind, folder):
    """A path that nothing can be written to."""
    path = folder / kind.replace(" ", "_")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "link to a folder":
        path.symlink_to(folder, target_is_directory=True)
    elif kind == "link to a device":
        path.symlink_to(os.devnull)
    return {
        "device": os.devnull, "no folder above": folder / "missing" / "a.json", "slash": f"{path}/", "dot": f"{path}/.",
        "up": f"{folder}/..", "nothing": "", "below a file": f"{__file__}/a.json",
    }.get(kind, path)  # fmt: skip


ANYWHERE = ["folder", "no folder above", "slash", "dot", "up", "nothing", "below a file"]


@pytest.mark.parametrize(
    "kind",
    [
        *ANYWHERE,
        *(
            pytest.param(kind, marks=UNIX)
            for kind in ("device", "pipe", "circle", "link to a folder", "link to a device")
        ),
    ],
)
def test_anything_else_is_refused_before_work(tmp_path, kind):
    path = strange(kind, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="cannot be written: it must name a regular file in an existing folder") as caught:
        with files.replacing(path):
            pytest.fail("it went to work")  # and so ends early, whatever it would have replaced
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@UNIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anything")
def test_a_file_that_may_not_be_written_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0o444)
    with pytest.raises(OSError, match="cannot be written"):
        files.save_json(path, {})


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_stays_if_the_block_ends_early(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(error):
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_right_after_the_file_took_its_place_is_not_hidden(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*paths):
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.save_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").read_text() == "{}\n"


def test_a_long_name_can_be_written(tmp_path):
    files.save_json(tmp_path / ("a" * 250 + ".json"), {})


def test_bytes_are_the_same_on_every_system(tmp_path):
    files.save_json(tmp_path / "a.json", {"a": [1]})
    assert (tmp_path / "a.json").read_bytes() == b'{\n "a": [\n  1\n ]\n}\n'


# States

STATE = {"next": 3, "tensors": [torch.arange(3.0), torch.ones(2, dtype=torch.float64)]}
DAMAGED = "is damaged or no checkpoint of this program: remove it to start afresh"


def test_a_state_comes_back(tmp_path):
    files.save(tmp_path / "a.pt", STATE)
    found = files.load(tmp_path / "a.pt")
    assert found["next"] == 3 and all(map(torch.equal, found["tensors"], STATE["tensors"]))
    assert files.load(tmp_path / "b.pt") is None


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=DAMAGED) as caught:
        files.load(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    files.save(path, STATE)
    content = path.read_bytes()
    for place in [*range(0, len(content), 7), *range(len(content) - 80, len(content))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        refused(path, bytes(flipped))


def test_every_other_damage_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    plain = path.read_bytes()
    files.save(path, STATE)
    whole = path.read_bytes()
    for content in (b"", b"nonsense", plain, whole[:-1], whole[: len(whole) // 2], whole + b"\n", whole * 2, whole[1:]):
        refused(path, content)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_no_code_is_run_even_with_a_good_checksum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.save(tmp_path / "a.pt", {"x": Evil()})
    with pytest.raises(ValueError, match=DAMAGED) as caught:
        files.load(tmp_path / "a.pt")
    assert "eights_only" in str(caught.value.__cause__)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit on the size of files plays a full disk")
def test_a_real_write_that_fails_is_an_oserror(tmp_path):
    """torch.save would raise RuntimeError; the kernel's own word for it comes through, and what was there stays."""
    import resource
    import signal

    files.save(tmp_path / "a.pt", STATE)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError) as caught:
            files.save(tmp_path / "a.pt", {"x": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert files.load(tmp_path / "a.pt")["next"] == 3 and len(list(tmp_path.iterdir())) == 1


# What a checkpoint's name hangs on


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules, of which the first imports the second and none the third."""
    name = f"played_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "game.py").write_text(f"from {name} import inner\n\ndef play():\n    return inner.step()\n")
    (folder / "inner.py").write_text("import os\n\ndef step():\n    return 1\n")
    (folder / "stranger.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def digest(package):
    return files.code_digest(f"{package.name}.game")


SAME = {
    "a comment": ("game.py", "# said\nfrom PACKAGE import inner  # here\n\n\ndef play():\n    return inner.step()\n"),
    "a docstring": ("inner.py", '"""Said."""\nimport os\n\ndef step():\n    """One."""\n    return 1\n'),
    "layout": ("inner.py", "import os\n\n\n\ndef step():\n    return (\n        1\n    )\n"),
    "a module that is not imported": ("stranger.py", "x = 2\n"),
}
OTHER = {
    "what is computed": ("inner.py", "import os\n\ndef step():\n    return 2\n"),
    "a string that is no docstring": ("inner.py", "import os\n\ndef step():\n    x = 'said'\n    return 1\n"),
    "what it imports": ("game.py", "from PACKAGE import inner, stranger\n\ndef play():\n    return inner.step()\n"),
    "a function that moved and changed": ("game.py", "from PACKAGE.stranger import x\n\ndef play():\n    return x\n"),
}


@pytest.mark.parametrize("change", [*SAME, *OTHER])
def test_a_code_digest_changes_with_what_is_executed(change, package):
    before = digest(package)
    file, text = (SAME | OTHER)[change]
    (package / file).write_text(text.replace("PACKAGE", package.name))
    assert (digest(package) == before) == (change in SAME)


def test_a_code_digest_follows_imports_wherever_they_lead(package):
    name = package.name
    (package / "inner.py").write_text(f"def step():\n    import {name}.stranger\n    return {name}.stranger.x\n")
    before = digest(package)
    (package / "stranger.py").write_text("x = 3\n")
    assert digest(package) != before
