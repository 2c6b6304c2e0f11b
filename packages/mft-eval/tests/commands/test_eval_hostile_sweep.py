"""Every hostile program against every kind of task in a few runs, as root and as an ordinary user, and a sweep after.

None passes that should not, unless it is marked; none outlives its deadline; what right programs between them get is
what they get alone; no process, file, shared memory or socket is left.
"""

import ctypes
import json
import os
import runpy
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from mft_eval.judging.languages import LANGUAGES, toolchain_path
from mft_eval.sandbox.protocol import BUILD_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

JUDGING = Path(__file__).parents[1] / "judging"
USERS = ("root", "ordinary")
_PR_SET_CHILD_SUBREAPER = 36
# Files of the sandboxes' user, or of the ordinary one.
OWNERS = (65534, 12345)
PLACES = ("/tmp", "/dev/shm", "/var/tmp", "/dev/mqueue", tempfile.gettempdir())
LATE_SECONDS = 2.0
SECONDS = 0.3
# What a busy machine alone can bring about counts only if it comes every time.
NUM_TRIES = 3

CPP = "int main() {\n    assert(twice(2) == 4);\n    assert(twice(-1) == -2);\n}\n"
JAVASCRIPT = (
    "const assert = require('node:assert');\nassert.deepEqual(twice(2), 4);\nconsole.assert(twice(-1) === -2);\n"
)
CLAMP = "def clamp(x, low, high):\n    if x < low: return low\n    if x > high: return high\n    return x\n"


def others(name):
    return runpy.run_path(str(JUDGING / name))


FAMILIES = runpy.run_path(str(Path(__file__).with_name("test_eval_hostile_families.py")))
COMPILED = runpy.run_path(str(Path(__file__).with_name("hostile_compiled.py")))["COMPILED"]
LEAVING = FAMILIES["LEAVING"]
# With this variable every program is run as both users; else some of them, each as one.
IS_WHOLE = bool(os.environ.get("MFT_EVAL_WHOLE_SWEEP"))


def tables():
    """Problem id -> its record, a right program, and the hostile ones by name."""
    attacks = others("test_eval_hostile.py")["ATTACKS"]
    functions = {name: textwrap.dedent(program) for name, (program, _) in attacks.items()} | LEAVING
    functions |= FAMILIES["forbidden_python"]()
    waiting = {name for name, (_, verdict) in attacks.items() if verdict == "timeout"} - WAITING
    quick = {name: program for name, program in functions.items() if name not in waiting}
    calls = {name: f"{program}\nprint(f(int(input())))\n" for name, program in quick.items()}
    # It finds its own file, and then its answer is right.
    del calls["reads what other programs left"]
    scripts, sql = others("test_eval_scripts.py"), others("test_eval_sql.py")
    beside, compiled = others("test_eval_beside.py"), others("test_eval_compiled.py")
    square, test = "def f(x):\n    return x * x\n", "assert f(2) == 4\nassert f(3) == 9\n"
    fields = {"prompt": "Write f.", "entry_point": "f", "timeout_seconds": SECONDS}
    cases = [{"input": given, "output": expected} for given, expected in scripts["CASES"].cases]
    squares = [{"input": "2\n", "output": "4\n"}, {"input": "3\n", "output": "9\n"}]
    stdin = {"prompt": "Print.", "timeout_seconds": SECONDS}
    query = sql["QUESTIONS"]["filter"][0]
    made = {
        "outside": (fields | {"test": test, "reference": square}, square, functions),
        "inside": (
            fields | {"test": f"import inspect\nassert inspect.isfunction(f)\n{test}", "reference": square},
            square,
            quick,
        ),
        "generator inside": (
            fields
            | {
                "test": "import inspect\nassert inspect.isgeneratorfunction(f)\n"
                "assert next(f(2)) == 4\nassert sum(f(3)) == 9\n",
                "reference": beside["REFERENCE"],
            },
            beside["REFERENCE"],
            {name: textwrap.dedent(program) for name, (program, _) in beside["ATTACKS"].items()},
        ),
        "stdin": (
            stdin | {"cases": cases, "reference": scripts["SUM"]},
            scripts["SUM"],
            {name: program for name, (program, _) in scripts["HOSTILE"].items()},
        ),
        "stdin of functions": (
            stdin | {"cases": squares, "reference": f"{square}print(f(int(input())))"},
            f"{square}print(f(int(input())))",
            calls,
        ),
        "sql": (
            {"prompt": "Who?", "language": "sql", "setup": sql["SCHEMA"], "reference": query, "timeout_seconds": 1.0},
            query,
            sql["HOSTILE"] | FAMILIES["sql"](),
        ),
    }
    own = {"prompt": "Write twice.", "entry_point": "twice", "timeout_seconds": 1.5}
    languages = {
        "cpp": (CPP, compiled["RIGHT"]["cpp"], {name: found[0] for name, found in compiled["CPP"].items()}),
        "javascript": (
            JAVASCRIPT,
            compiled["RIGHT"]["javascript"],
            {name: found[0] for name, found in compiled["JAVASCRIPT"].items()},
        ),
        **COMPILED,
    }
    for language, (tests, right, own_hostile) in languages.items():
        hostile = own_hostile | FAMILIES[language]()
        if toolchain_path(LANGUAGES[language]) is not None:
            entry = {"entry_point": "Twice"} if language == "java" else {}
            made[language] = (own | entry | {"language": language, "test": tests, "reference": right}, right, hostile)
    return made


# Passes where test and program share an interpreter, and marked there: they lie to a test that asks them, or read it.
FORGED_INSIDE = {
    "overrides equality",
    "returns an object equal to all",
    "reads frames",
    "returns a subclass of list equal to all",
    "returns a float that lies",
    "returns a class equal to all",
    "returns an iterator that lies",
    "lies about its class",
    "calls its class Fraction",
}
FORGED = {"inside": FORGED_INSIDE, "rust": {"replaces assertions"}}
# What waits for its deadline does so in every kind; these stand for the others.
WAITING = {"never returns", "ignores signals and sleeps", "leaves a daemon"}


# On a busy machine a program may also run out of time.
EXACT = {
    language: {name: verdict for name, (_, verdict) in others("test_eval_compiled.py")[language.upper()].items()}
    for language in ("cpp", "javascript")
}


def is_text(program):
    try:
        program.encode()
    except UnicodeEncodeError:
        return False
    return True


# These have no other test: in the short form too each is run.
KEPT = {
    **{language: set(table[2]) for language, table in COMPILED.items()},
    **{language: set(verdicts) for language, verdicts in EXACT.items()},
}


def turn(user, kind, hostile):
    """The programs that are run as this user."""
    if IS_WHOLE:
        return hostile
    kept = KEPT.get(kind, WAITING | LEAVING.keys())
    alone = [name for name in hostile if name in kept]
    # Of the families every fourth; of two moments that a deed has, one.
    more = [name for name in hostile if name not in kept]
    shares = [{*alone[place::2], *more[3 * place :: 4]} for place in range(len(USERS))]
    # Where nobody is root, the other has both.
    chosen = shares[USERS.index(user)] if os.geteuid() == 0 else set().union(*shares)
    return {name: program for name, program in hostile.items() if name in chosen}


@pytest.mark.skipif(IS_WHOLE or os.geteuid() != 0, reason="every program is run")
def test_every_kind_and_family_has_its_turn():
    for kind, (_, _, hostile) in tables().items():
        root, ordinary = (turn(user, kind, hostile) for user in USERS)
        assert root.keys() & ordinary.keys() == set()
        assert KEPT.get(kind, WAITING & hostile.keys()) <= root.keys() | ordinary.keys()
        for chosen in (root, ordinary):
            assert len(chosen) >= min(len(hostile) // 5, 20)
        # A deed is done in one of its moments at least.
        deeds = {"cpp": "CPP_DEEDS", "javascript": "JAVASCRIPT_DEEDS", "java": "JAVA_DEEDS"}.get(kind)
        for deed in FAMILIES[deeds] if deeds else ():
            assert [name for name in root | ordinary if name.startswith(f"{deed} ")]
        if kind in ("outside", "inside", "stdin of functions"):
            for chosen in (root, ordinary):
                assert len([name for name in chosen if name.startswith("calls ")]) >= 8


def test_there_are_eighty_of_every_kind_and_twenty_of_others():
    made = tables()
    assert min(len(made[kind][2]) for kind in ("outside", "inside", "stdin of functions", "sql")) >= 80
    for language, least in {"cpp": 80, "javascript": 80, "java": 20, "rust": 20, "go": 20}.items():
        assert language not in made or len(made[language][2]) >= least
    assert len(others("test_eval_unit_tests.py")["HOSTILE"]) + len(made["inside"][2]) >= 80


def write(folder, made):
    """The problems and the generations, a right program before every fourth hostile one; the names of the samples."""
    problems, generations, named = [], [], {}
    for problem_id, (record, right, hostile) in made.items():
        problems.append({"problem_id": problem_id, **record})
        names = named[problem_id] = []
        for number, (name, program) in enumerate(hostile.items()):
            if is_text(program):
                for chosen, text in [(None, right)] * (number % 4 == 0) + [(name, program)]:
                    names.append(chosen)
                    generations.append({"task_id": problem_id, "solution": text})
    for name, lines in (("problems.jsonl", problems), ("generations.jsonl", generations)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / name).chmod(0o644)
    return named


def children():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # An ended one is for its parent to collect, whoever that becomes.
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append(int(folder.name))
    return set(found)


def left_behind():
    files = {
        str(path)
        for place in PLACES
        if os.access(place, os.R_OK)
        for path in Path(place).glob("*")
        if path.lstat().st_uid in OWNERS or path.name.startswith("mft-eval-")
    }
    memory = {
        line.split()[1]
        for kind in ("shm", "sem", "msg")
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        if set(map(str, OWNERS)) & set(line.split())
    }
    sockets = {line for line in Path("/proc/net/unix").read_text().splitlines() if "mft-eval-left" in line}
    return files | memory | sockets


def score(command, folder, *options):
    """The problems of the results, and the seconds of each sample."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    out.chmod(0o777)
    arguments = [folder / "problems.jsonl", folder / "generations.jsonl", "-", "--timings", out / "timings.jsonl"]
    arguments += ["--overwrite", "--memory-mb", "1024", *options]
    for _ in range(NUM_TRIES):
        done = subprocess.run([*command, "score", *arguments], capture_output=True, text=True)
        # A reference may run out of time on a busy machine.
        if done.returncode == 0 or "timeout" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    return json.loads(done.stdout)["problems"], {(t["problem_id"], t["sample_index"]): t["seconds"] for t in timings}


@pytest.fixture
def sweep():
    """Whatever a run leaves behind becomes a child of this process, which then finds it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, running = left_behind(), children()
    yield
    deadline = time.monotonic() + 10
    # What another run on this machine has made goes by itself.
    while ((children() - running) or not left_behind() <= before) and time.monotonic() < deadline:
        time.sleep(0.1)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert not children() - running
    assert left_behind() <= before


def faults_of(problem, seconds, names, record):
    """What is wrong with a problem's samples, with their names: for certain, and what a busy machine may have done."""
    certain, doubtful = [], []
    cases = max(1, len(record.get("cases", ())))
    deadline = record.get("timeout_seconds", 10) * problem["time_factor"] * cases
    exact = EXACT.get(problem["problem_id"], {})
    for name, sample in zip(names, problem["samples"], strict=True):
        verdict, detail = sample["verdict"], sample["detail"]
        told = (name, problem["problem_id"], verdict, detail)
        is_building = detail in ("does not compile", "while it was built")
        last = BUILD_SECONDS if is_building else deadline
        if verdict == "harness-error":
            doubtful.append(("no verdict", *told))
        elif name is None and verdict != "passed":
            (doubtful if verdict == "timeout" else certain).append(("a right program", *told))
        elif name is not None and verdict == "passed":
            if not (sample["untrusted"] and name in FORGED.get(problem["problem_id"], ())):
                certain.append(("passed", *told))
        elif name in exact and verdict not in (exact[name], "timeout"):
            certain.append(("another verdict", *told))
        if seconds[problem["problem_id"], sample["sample_index"]] > last + LATE_SECONDS:
            doubtful.append(("late", *told))
    return certain, doubtful


def check(command, folder, made, *options):
    """Nothing is wrong with any of them; what may be the machine's fault is tried again, by itself."""
    for _ in range(NUM_TRIES):
        named = write(folder, made)
        problems, seconds = score(command, folder, *options)
        again, told = {}, []
        for problem in problems:
            problem_id = problem["problem_id"]
            record, right, hostile = made[problem_id]
            certain, doubtful = faults_of(problem, seconds, named[problem_id], record)
            assert not certain, "\n".join(map(str, certain))
            if doubtful:
                names = {name for _, name, *_ in doubtful} - {None} or {next(iter(hostile))}
                again[problem_id] = (record, right, {name: hostile[name] for name in names})
                told += doubtful
        if not again:
            return
        made, options = again, (*options, "--workers", "1")
    pytest.fail("\n".join(map(str, told)))


def command_of(user, ordinary_user):
    return [*(ordinary_user if user == "ordinary" else []), Path(sys.executable).parent / "mft-eval"]


@pytest.mark.parametrize("user", USERS)
def test_nothing_hostile_gets_through_in_any_kind(tmp_path, sweep, ordinary_user, user):
    if user == "root" and os.geteuid() != 0:
        pytest.skip("nobody is root here")
    made = {kind: (record, right, turn(user, kind, hostile)) for kind, (record, right, hostile) in tables().items()}
    check(command_of(user, ordinary_user), tmp_path, made)


@pytest.mark.parametrize("user", USERS)
def test_no_hostile_unit_tests_get_through(tmp_path, sweep, ordinary_user, user):
    if user == "root" and os.geteuid() != 0:
        pytest.skip("nobody is root here")
    units = others("test_eval_unit_tests.py")
    wrap = units["wrap_tests"]
    hostile = {name: wrap(textwrap.dedent(script)) for name, (script, _) in units["HOSTILE"].items()}
    functions = tables()["inside"][2]
    hostile |= {f"function that {name}": wrap(program) for name, program in functions.items()}
    record = {
        "prompt": "Write clamp.",
        "entry_point": "clamp",
        "reference": CLAMP,
        "test": units["OWN"],
        "timeout_seconds": SECONDS,
    }
    made = {"clamp": (record, wrap(units["OWN"]), turn(user, "clamp", hostile))}
    check(command_of(user, ordinary_user), tmp_path, made, "--kind", "tests")
