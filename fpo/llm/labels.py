"""What is paid for once: a cache in SQLite, and oracle labels in it with a time-out and a limit on retries."""

import hashlib
import json
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fpo.parameters import ParameterError, one_line

Ask = Callable[[list[int]], Sequence[float | None]]
Told = tuple[list[float | None], Exception | None]
Answers = queue.SimpleQueue[Told]


class OracleError(RuntimeError):
    """An oracle did not answer, or not with numbers; what it had answered before is kept."""


class Cache:
    """What was told, by the content of what was asked, in SQLite: on disk before the next is asked for.

    Parameters
    ----------
    path : path, optional
        The file; without it what is kept lasts as long as this object.
    name : str
        What is kept, as the parameter is called that names the file.

    Raises
    ------
    ParameterError
        If the file cannot keep it.
    """

    def __init__(self, path: str | Path | None = None, name: str = "labels"):
        self._name = name
        try:
            self._file = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)
            self._file.execute(f"CREATE TABLE IF NOT EXISTS {name} (asked TEXT PRIMARY KEY, label NOT NULL)")
            self._file.execute(f"SELECT asked, label FROM {name} LIMIT 1")
        except sqlite3.Error as error:
            reason = one_line(error)
            raise ParameterError(f"{name} = {str(path)!r}: no file that {name} can be kept in ({reason})") from error

    @staticmethod
    def key(asked: Any) -> str:
        """The SHA-256 of what is asked, anything that JSON can say."""
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Any:
        """What was told; None before."""
        row = self._file.execute(f"SELECT label FROM {self._name} WHERE asked = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, told: float | str) -> None:
        """Keep what is told first."""
        self._file.execute(f"INSERT OR IGNORE INTO {self._name} VALUES (?, ?)", (key, told))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        return int(self._file.execute(f"SELECT COUNT(*) FROM {self._name}").fetchone()[0])


class Labels:
    """Labels by what was asked about: each is asked for until it is known, and then never again.

    Parameters
    ----------
    path : path, optional
        An SQLite file that keeps them, one for each oracle; without it they last as long as this object.
    timeout : float
        Seconds that one call of the oracle may take; 0: no limit. What a call answers later is kept as well; labels
        that another try has asked for in the meantime are paid for twice: `wait` is the time that it is given.
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
        self._late: list[tuple[list[str], Answers]] = []  # calls that were over their time, and what they ask about
        self._kept = Cache(path)

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
        keys = [Cache.key(list(each)) for each in asked]
        places = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
        reason = "no answer"
        for attempt in range(self._tries):
            missing = self._missing(places)
            if missing and attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
                missing = self._missing(places)
            if not missing:
                break
            wanted = [keys[place] for place in missing]
            answers = started(partial(ask, missing), self._timeout)
            told = answered(answers, self._timeout)
            if told is None:
                self._late.append((wanted, answers))
                reason = f"TimeoutError: no answer within {self._timeout:g} s"
                continue
            labels, error = told
            if error is not None:
                reason = f"{type(error).__name__}: {error}"
                continue
            if len(labels) != len(missing):
                raise OracleError(f"the oracle gave {len(labels)} labels for {len(missing)} texts")
            if wrong := self._keep(wanted, labels):
                reason = f"label {wrong[0]!r}"
        if lacking := self._missing(places):
            raise OracleError(
                f"the oracle gave no number for {len(lacking)} of {len(places)} texts in {self._tries} tries ({reason})"
            )
        return [self._kept.get(key) for key in keys]

    def _missing(self, places: Mapping[str, int]) -> list[int]:
        """Where the label is not known, not even from a call that was over its time and has answered since."""
        waiting, self._late = self._late, []
        for keys, answers in waiting:
            told = answered(answers, 0.0, wait=False)
            if told is None:
                self._late.append((keys, answers))
            elif len(told[0]) == len(keys):  # or it raised an error, too late for anybody
                self._keep(keys, told[0])
        return sorted(place for key, place in places.items() if self._kept.get(key) is None)

    def _keep(self, keys: Sequence[str], labels: Sequence[float | None]) -> list[float | None]:
        """Keep what is a number; what is none."""
        for key, label in zip(keys, labels, strict=True):
            if label is not None and math.isfinite(label):
                self._kept.put(key, float(label))
        return [label for label in labels if label is None or not math.isfinite(label)]

    def __len__(self) -> int:
        return len(self._kept)


def started(call: Callable[[], Sequence[float | None]], seconds: float) -> Answers:
    """A queue that gets the labels or the error of a call; without a limit the call is made here and now.

    With one it is made in a thread that ends with the process.
    """
    answers: Answers = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((list(call()), None))
        except Exception as error:  # an oracle is the reader's own code, or a service's client
            answers.put(([], error))

    if seconds:
        threading.Thread(target=answer, daemon=True).start()
    else:
        answer()
    return answers


def answered(answers: Answers, seconds: float, wait: bool = True) -> Told | None:
    """Labels and error of a call; None if it has not answered within so many seconds (0: however long it takes)."""
    try:
        return answers.get(wait, seconds or None)
    except queue.Empty:
        return None
