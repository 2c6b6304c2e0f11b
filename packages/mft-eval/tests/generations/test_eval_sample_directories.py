"""EvalPlus's directories of samples."""

import pytest

from mft_eval.errors import EvalError
from mft_eval.generations.reading import read_generations


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_a_directory_says_what_a_file_of_its_programs_says(tmp_path):
    files = {f"HumanEval_0/{number}.py": b"x = %d\n" % number for number in (0, 1, 2, 10)}
    files |= {"Mbpp_11/0.py": b"y = 1\n", "HumanEval_0/notes.txt": b"\xff", "README.md": b"hi"}
    found = read_generations(write(tmp_path, files), {"HumanEval/0", "11"})
    assert [completion.text for completion in found.completions["HumanEval/0"].values()] == [
        "x = 0\n",
        "x = 1\n",
        "x = 2\n",
        "x = 10\n",
    ]
    assert found.completions["11"][0].text == "y = 1\n"
    assert all(completion.is_program for samples in found.completions.values() for completion in samples.values())
    assert found == read_generations(str(tmp_path), {"HumanEval/0", "11"})


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"README.md": b"hi"}, "no generations"),
        ({"HumanEval_0/0.py": b"\xff"}, "not UTF-8"),
        ({"HumanEval_999/0.py": b"x"}, 'unknown problem "HumanEval/999"'),
    ],
)
def test_a_wrong_directory_is_one_clear_error(tmp_path, files, told):
    with pytest.raises(EvalError, match=told):
        read_generations(write(tmp_path, files), {"HumanEval/0"})
