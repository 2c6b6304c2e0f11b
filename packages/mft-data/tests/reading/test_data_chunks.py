"""The input of a build cut into chunks of whole lines."""

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_data.reading import chunks
from mft_data.reading.chunks import part_of, plan_chunks
from mft_data.reading.lines import SpanLines, lines_before, read_lines
from mft_data.reading.sources import Source, SourceFile
from mft_data.reading.survey import survey_file


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.data())
def test_spans_hold_every_line_once_with_its_number(tmp_path_factory, lines, data):
    content = b"\n".join(lines)
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=5))})
    path = tmp_path_factory.mktemp("spans") / "a.jsonl"
    path.write_bytes(content)
    whole = list(SpanLines(path, 0, len(content)))
    found, digests, num_lines = [], [], 0
    for start, stop in itertools.pairwise(cuts):
        before = lines_before(path, start)
        assert before == num_lines
        lines = SpanLines(path, start, stop)
        found += [(before + number, line) for number, line in lines]
        digests.append(lines.digest)
        num_lines += lines.num_lines
    assert found == whole == list(read_lines(path))
    if content:
        survey = survey_file(path, len(content), cuts[:-1])
        assert survey.digests == digests
        assert survey.num_lines == num_lines
        assert survey.sha256 == hashlib.sha256(content).hexdigest()
    expected = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert [(number, line.removesuffix(b"\n")) for number, line in whole] == expected


@given(
    sizes=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=5), min_size=1, max_size=3),
    num_parts=st.integers(1, 5),
)
def test_chunks_and_parts_cover_every_byte_once(sizes, num_parts):
    sources = [
        Source(
            f"t{task}",
            (Path("x"),),
            tuple(SourceFile(Path(f"{n}.jsonl"), f"{n}", size) for n, size in enumerate(task_sizes)),
        )
        for task, task_sizes in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MIN_CHUNK_BYTES", 40)
        patch.setattr(chunks, "CHUNK_ROWS", 0)
        planned = plan_chunks(sources, 128)
    assert [chunk.index for chunk in planned] == list(range(len(planned)))
    for task, source in enumerate(sources):
        spans = [span for chunk in planned if chunk.task == task for span in chunk.spans]
        for number, file in enumerate(source.files):
            own = [(span.start, span.stop) for span in spans if span.file == number]
            assert own[0][0] == 0
            assert own[-1][1] == file.size_bytes
            assert all(one[1] == other[0] for one, other in itertools.pairwise(own))
    parts = [chunk for part in range(1, num_parts + 1) for chunk in part_of(planned, part, num_parts)]
    assert parts == planned
