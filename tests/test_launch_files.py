"""The scripts in docs/ that start runs on clusters: whole as files, and with options that the command has."""

import re
import subprocess
from pathlib import Path

import yaml
from click.testing import CliRunner

from mft_train.cli import main

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = [DOCS / "slurm" / "train.sbatch", DOCS / "kubernetes" / "train.yaml", DOCS / "launching.md"]


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", SCRIPTS[0]], check=True)


def test_the_job_and_its_service_name_each_other():
    service, job = yaml.safe_load_all(SCRIPTS[1].read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    (line,) = re.findall(r"--main-address (\S+)", SCRIPTS[1].read_text())
    port = service["spec"]["ports"][0]["port"]
    assert line == f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port}"


def test_every_option_of_a_launch_is_one_of_the_command():
    known = set(re.findall(r"--[a-z-]+", CliRunner().invoke(main, ["launch", "--help"]).stdout))
    for path in SCRIPTS:
        text = path.read_text().replace("\\\n", " ")
        used = re.findall(r"mft[-_]train launch (.*)", text)
        assert used, path
        for line in used:
            assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known, (path, line)
