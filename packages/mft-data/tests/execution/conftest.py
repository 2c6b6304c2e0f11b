"""Sources of several chunks, and builds of them, for the tests of the engine."""

import gzip
from types import SimpleNamespace

import orjson
import pytest
from click.testing import CliRunner

from mft_data.cli import main
from mft_data.reading import chunks

SEQ_LENGTH = 128


def record(number):
    """A conversation of a length that depends on its number, and a text that tells which one it is."""
    answer = " ".join(f"return {number}" for _ in range(1 + number % 9))
    return {"chat_rounds": [{"role": "human", "content": f"add {number}"}, {"role": "bot", "content": answer}]}


def tree(folder):
    """Name and content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A large task in three files, one of them compressed, and a small one."""
    root = tmp_path_factory.mktemp("sources")
    (root / "large").mkdir()
    (root / "small").mkdir()
    lines = [orjson.dumps(record(number)) + b"\n" for number in range(1200)]
    (root / "large" / "a.jsonl").write_bytes(b"".join(lines[:700]))
    (root / "large" / "b.jsonl").write_bytes(b"".join(lines[700:1000]).rstrip(b"\n"))
    with gzip.GzipFile(root / "large" / "c.jsonl.gz", "wb", mtime=0) as handle:
        handle.write(b"".join(lines[1000:]))
    (root / "small" / "a.jsonl").write_bytes(
        b"".join(orjson.dumps(record(5000 + number)) + b"\n" for number in range(9))
    )
    return root


@pytest.fixture
def small_chunks(monkeypatch):
    """Cuts even these sources into about ten chunks."""
    monkeypatch.setattr(chunks, "MIN_CHUNK_BYTES", 16_000)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)


@pytest.fixture
def run(tmp_path, tokenizer_dir, monkeypatch):
    """Runs a command in `tmp_path`; builds get the tokenizer."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, exit_code=0):
        options = ["--tokenizer", str(tokenizer_dir), "--seq-length", "128"] if arguments[0] == "build" else []
        result = CliRunner().invoke(main, [arguments[0], *options, *map(str, arguments[1:])])
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def build(sources, tokenizer_dir, small_chunks):
    """Runs `mft-data build` on the sources; returns the result."""

    def build(out, *options, exit_code=0, names=("large", "small")):
        arguments = [*(str(sources / name) for name in names), str(out), "--tokenizer", str(tokenizer_dir)]
        arguments += ["--seq-length", str(SEQ_LENGTH), *map(str, options)]
        result = CliRunner().invoke(main, ["build", *arguments])
        assert result.exit_code == exit_code, result.output
        return result

    return build


@pytest.fixture
def plain(build, tmp_path):
    """What one process builds without being disturbed."""
    build(tmp_path / "plain", "--workers", "1")
    return tree(tmp_path / "plain")


def leftovers(folder):
    """Hidden files and folders that a build should have removed."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="session")
def helpers():
    """`record(number)`, `tree(folder)` and `leftovers(folder)`."""
    return SimpleNamespace(record=record, tree=tree, leftovers=leftovers)
