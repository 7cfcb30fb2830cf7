"""Can the tests fail? Breaks the code in one place after another and runs the tests that should notice.

    python tools/mutate.py --jobs 4              # all mutations of tools/mutations.yaml, and the table of verdicts
    python tools/mutate.py --list                # what they are
    python tools/mutate.py --only the-betas-of-adamw --only maes-decoder-at-other-places

Each mutation is an exact text of one file, what takes its place, and the few tests that should die of it. They run in
copies of this tree, uncommitted changes included, in a temporary folder: no file here is touched. First all named tests
run on the tree as it is, for a test that fails anyway proves nothing. Exit code 1 where a mutation survived or its text
is no longer there, 2 where the tests fail without one.

pytest runs in processes that are forked from this one, which has imported PyTorch: a mutation costs what its tests do.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import final

import yaml
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutations.yaml")
TIMEOUT_S = 600
"""Of the tests of a mutation, on a busy machine too: one that has them wait forever is found."""
_COMPILED = "hjepa_shards/**/*.so"
"""What git does not know and the tests need."""
_IMPORTED = ("pytest", "pydantic", "scipy.linalg", "sklearn.datasets", "torch._dynamo", "torch.distributed.fsdp")
"""What takes tests seconds to import; nothing of this project."""

console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One place in which the code is broken."""

    name: str
    why: str
    """What would be wrong if no test noticed."""
    file: str
    """From the root; or a folder, where a function may move between its modules."""
    old: str
    """Exactly once in there."""
    new: str
    tests: tuple[str, ...]
    """As pytest takes them."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of some tests."""

    mutation: Mutation | None
    """None: of the tree as it is."""
    found: str
    """`killed`, `survived`, or why neither can be said."""
    said: str
    """By pytest, its end."""
    seconds: float


def read_mutations(path: Path = LIST) -> list[Mutation]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Mutation(**{**fields, "name": name, "tests": tuple(fields["tests"])}) for name, fields in content.items()]


def place_of(mutation: Mutation, root: Path) -> Path:
    """The file with the text. ValueError where it is not there exactly once."""
    place = root / mutation.file
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place] if place.exists() else []
    found = [path for path in paths for _ in range(path.read_text(encoding="utf-8").count(mutation.old))]
    if len(found) != 1:
        raise ValueError(
            f"{mutation.name}: its text once in {mutation.file} expected, {len(found)} times found; change it in "
            f"{LIST.name} as the code has changed"
        )
    return found[0]


def outcomes(tasks: Sequence[tuple[Mutation | None, Sequence[str]]], roots: Sequence[Path]) -> Iterator[Outcome]:
    """Of each mutation and its tests, as they end; as many run at a time as there are copies of the tree."""
    waiting, free, running = list(tasks), list(roots), dict[int, _Running]()
    while waiting or running:
        while waiting and free:
            mutation, tests = waiting.pop(0)
            try:
                started = _Running(mutation, tests, free[-1])
            except ValueError as error:
                yield Outcome(mutation=mutation, found="does not apply", said=str(error), seconds=0)
                continue
            free.pop()
            running[started.process.sentinel] = started
        ended = wait(list(running), timeout=1)
        late = [sentinel for sentinel, one in running.items() if time.monotonic() - one.began > TIMEOUT_S]
        for sentinel in {*(each for each in ended if isinstance(each, int)), *late}:
            one = running.pop(sentinel)
            yield one.outcome(is_late=sentinel not in ended)
            free.append(one.root)


@final
class _Running:
    """Tests that run in a copy of the tree, which is as it was after `outcome`."""

    def __init__(self, mutation: Mutation | None, tests: Sequence[str], root: Path) -> None:
        self.root, self.began, self._mutation = root, time.monotonic(), mutation
        self._path = place_of(mutation, root) if mutation else None
        if mutation and self._path:
            self._before, self._times = self._path.read_text(encoding="utf-8"), self._path.stat()
            self._path.write_text(self._before.replace(mutation.old, mutation.new), encoding="utf-8")
        self.process = _start(tests, root)

    def outcome(self, *, is_late: bool) -> Outcome:
        """is_late: tests that wait for ever have noticed."""
        if is_late:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()  # it is ending, where it is not late: its pipe was closed first
        if self._path:
            self._path.write_text(self._before, encoding="utf-8")
            os.utime(self._path, ns=(self._times.st_atime_ns, self._times.st_mtime_ns))  # bytecode has another time
        code = 1 if is_late else self.process.exitcode
        found = {0: "survived", 1: "killed"}.get(code or 0, f"pytest ended with {code}")
        said = self.root.with_suffix(".log").read_text(errors="replace")[-4000:]
        return Outcome(mutation=self._mutation, found=found, said=said, seconds=time.monotonic() - self.began)


def _start(tests: Sequence[str], root: Path) -> ForkProcess:
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tests, root))
    process.start()
    return process


def _run_tests(tests: Sequence[str], root: Path) -> None:
    """In a process of its own: pytest as if it were started in `root`; what it says is in <root>.log."""
    os.setsid()
    with root.with_suffix(".log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = False
    import pytest

    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
    sys.stdout.flush()
    os._exit(code)


def copied(root: Path, to: Path) -> Path:
    """A copy of what git knows of a tree, changes and new files included, and of its compiled parts."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    compiled = [path.relative_to(root).as_posix() for path in root.glob(_COMPILED)]
    for name in [*filter(None, listed), *compiled]:
        if (root / name).is_file():  # neither removed nor a link to a folder
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what the mutations are, and do nothing")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    arguments = parser.parse_args()
    mutations = read_mutations()
    unknown = set(arguments.only or ()) - {mutation.name for mutation in mutations}
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: a name that --list shows expected")
    if arguments.only:
        mutations = [mutation for mutation in mutations if mutation.name in arguments.only]
    if arguments.list:
        table = Table("mutation", "in", "what would be wrong")
        for mutation in mutations:
            table.add_row(mutation.name, mutation.file, mutation.why)
        console.print(table)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in _IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        roots = [copied(HERE, Path(scratch) / str(number)) for number in range(max(1, arguments.jobs))]
        for outcome in outcomes([(None, [test]) for test in _distinct(mutations)], roots):
            if outcome.found != "survived":
                console.print(f"without any mutation the tests fail ({outcome.found}):", style="red")
                console.print(outcome.said, markup=False)
                raise SystemExit(2)
        found: list[Outcome] = []
        for outcome in outcomes([(mutation, mutation.tests) for mutation in mutations], roots):
            found.append(outcome)
            console.print(f"{outcome.found:10} {outcome.mutation.name if outcome.mutation else ''}")
    _report(mutations, found)


def _distinct(mutations: Sequence[Mutation]) -> list[str]:
    """Their tests, each once."""
    named = {test for mutation in mutations for test in mutation.tests}
    return sorted(test for test in named if not any(test != other and test.startswith(other) for other in named))


def _report(mutations: Sequence[Mutation], found: Sequence[Outcome]) -> None:
    """The table of verdicts; SystemExit with 1 where not all were killed."""
    table = Table("mutation", "in", "what would be wrong", "verdict", "s")
    of = {outcome.mutation.name: outcome for outcome in found if outcome.mutation}
    for mutation in mutations:
        one = of[mutation.name]
        colour = "green" if one.found == "killed" else "red"
        verdict = f"[{colour}]{one.found}[/{colour}]"
        table.add_row(mutation.name, mutation.file, mutation.why, verdict, f"{one.seconds:.0f}")
    killed = sum(one.found == "killed" for one in found)
    console.print(table)
    console.print(f"{killed} of {len(found)} killed")
    raise SystemExit(killed < len(found))


if __name__ == "__main__":
    main()
