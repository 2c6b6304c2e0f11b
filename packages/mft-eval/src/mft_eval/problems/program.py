"""The program that a completion stands for, given its problem."""

from mft_eval.generations.extraction import extract_infill, extract_program
from mft_eval.generations.go_source import go_file
from mft_eval.generations.reading import Completion
from mft_eval.generations.source_extraction import extract_source
from mft_eval.generations.sql_extraction import extract_sql
from mft_eval.problems.problem import Problem
from mft_eval.problems.unit_tests import wrap_tests


def make_program(completion: Completion, problem: Problem) -> str:
    """The whole program, ready to be judged."""
    if completion.is_program:
        return completion.text
    if problem.is_for_tests:
        return wrap_tests(extract_program(completion.text, ""))
    if problem.suffix_code is not None:
        return problem.prompt_code + extract_infill(completion.text, problem.prompt_code) + problem.suffix_code
    if problem.language == "sql":
        return extract_sql(completion.text)
    extract = extract_program if problem.language == "python" else extract_source
    program = extract(completion.text, problem.entry_point, problem.prompt_code)
    return go_file(program) if problem.language == "go" and problem.entry_point else program
