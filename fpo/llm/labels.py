"""Oracle labels that are paid for once: a cache in SQLite, a time-out, a limit on retries."""

import hashlib
import json
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Ask = Callable[[list[int]], Sequence[float | None]]


class OracleError(RuntimeError):
    """An oracle did not answer, or not with numbers; what it had answered before is kept."""


class Labels:
    """Labels by what was asked about: each is asked for until it is known, and then never again.

    Parameters
    ----------
    path : path, optional
        An SQLite file that keeps them, one for each oracle; without it they last as long as this object.
    timeout : float
        Seconds that one call of the oracle may take; 0: no limit.
    tries : int
        Most calls for a label.
    wait : float
        Seconds before the second try, twice as long before each further one.

    Raises
    ------
    ValueError
        If a number is out of its range, or the file is no cache of labels.
    """

    def __init__(self, path: str | Path | None = None, timeout: float = 60.0, tries: int = 3, wait: float = 1.0):
        for name, value in {"timeout": timeout, "wait": wait}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} = {value!r}: must be a finite number of seconds, 0 or more")
        if tries < 1:
            raise ValueError(f"tries = {tries!r}: must be a whole number, 1 or more")
        self._timeout, self._tries, self._wait = timeout, tries, wait
        try:
            self._file = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)
            self._file.execute("CREATE TABLE IF NOT EXISTS labels (asked TEXT PRIMARY KEY, label REAL NOT NULL)")
        except sqlite3.Error as error:
            raise ValueError(f"labels = {str(path)!r}: no file that labels can be kept in ({error})") from error

    def __call__(self, asked: Sequence[Sequence[str]], ask: Ask) -> list[float]:
        """The label of each of `asked`, such as (prompt, text).

        Parameters
        ----------
        asked : sequence of sequences of str
            What each label depends on.
        ask : callable
            Positions in `asked`, each once -> labels, None where there is none this time.

        Raises
        ------
        OracleError
            If labels are still missing after the last try. Those that came stay in the cache.
        """
        keys = [hashlib.sha256(json.dumps(list(each)).encode()).hexdigest() for each in asked]
        places = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
        found = {key: label for key in places if (label := self._known(key)) is not None}
        reason = "no answer"
        for attempt in range(self._tries):
            missing = sorted(places[key] for key in places if key not in found)
            if not missing:
                break
            if attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
            try:
                labels = list(within(self._timeout, partial(ask, missing)))
            except Exception as error:  # an oracle is the reader's own code, or a service's client
                reason = f"{type(error).__name__}: {error}"
                continue
            if len(labels) != len(missing):
                raise OracleError(f"the oracle gave {len(labels)} labels for {len(missing)} texts")
            for place, label in zip(missing, labels, strict=True):
                if label is not None and math.isfinite(label):
                    found[keys[place]] = float(label)
                    self._file.execute("INSERT OR IGNORE INTO labels VALUES (?, ?)", (keys[place], float(label)))
                else:
                    reason = f"label {label!r}"
        if lacking := [key for key in places if key not in found]:
            raise OracleError(
                f"the oracle gave no number for {len(lacking)} of {len(places)} texts in {self._tries} tries ({reason})"
            )
        return [found[key] for key in keys]

    def __len__(self) -> int:
        return int(self._file.execute("SELECT COUNT(*) FROM labels").fetchone()[0])

    def _known(self, key: str) -> float | None:
        row = self._file.execute("SELECT label FROM labels WHERE asked = ?", (key,)).fetchone()
        return None if row is None else row[0]


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns, if it takes no longer; 0: however long it takes.

    Raises
    ------
    TimeoutError
        If it does. The call is left to itself in a thread that ends with the process.
    """
    if not seconds:
        return call()
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # handed to who waits
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return found
