"""The report served while a run goes on: the real command, a real socket on loopback."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.report.watch import ReportServer

TRAIN = {
    "event": "train",
    "global_step": 1,
    "loss": 1.5,
    "task_losses": {"sql": 1.5},
    "task_weights": {"sql": 1.0},
    "learning_rate": 1e-4,
    "grad_norm": 0.5,
    "supervised_tokens": 40,
    "tokens": 100,
    "tokens_per_second": 50.0,
    "num_steps": 10,
}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text("model: base/\ndataset: none/\n")
    return tmp_path


@pytest.fixture
def server(run_dir):
    with ReportServer(run_dir, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, path="", **headers):
    request = urllib.request.Request(f"{server.url}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode(), answer.headers


def tell(run_dir, *events):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_the_page_follows_the_run_from_before_its_first_event(server, run_dir):
    page, headers = get(server)
    assert "Nothing to show yet: there is no metrics.jsonl, in" in page
    assert headers["Cache-Control"] == "no-store"
    tell(run_dir, TRAIN)
    before, _ = get(server, "version")
    page, _ = get(server)
    assert f'data-version="{before}"' in page
    assert "1 of 10" in re.sub(r"<[^>]+>", " ", page).replace("  ", " ")
    tell(run_dir, TRAIN | {"global_step": 2})
    after, _ = get(server, "version")
    assert after != before
    assert "<dd>2</dd>" in get(server)[0]
    tell(run_dir, {"event": "train", "global_step": 3}, TRAIN)
    assert "Nothing to show yet: the event lacks the key" in get(server)[0]


def test_a_page_that_is_served_lets_nothing_else_in(server, run_dir):
    import base64
    import hashlib

    tell(run_dir, TRAIN)
    page, _ = get(server)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2
    assert all(f"'sha256-{found}'" in policy for found in hashes)


@pytest.mark.parametrize(("path", "host", "code"), [("", "evil.example", 403), ("metrics.jsonl", None, 404)])
def test_other_names_and_other_files_are_refused(server, path, host, code):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(server, path, **({"Host": host} if host else {}))
    assert error.value.code == code


def test_only_this_machine_is_answered(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


def watch(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_a_port_that_is_taken_is_one_line(run_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = watch(run_dir, "--watch", "--port", port)
    assert result.exit_code == 1
    assert result.stderr == f"Error: port {port} is taken, choose another with --port; 0 is any that is free\n"


def test_a_folder_that_is_not_there_and_options_that_do_not_fit_are_refused(run_dir, tmp_path):
    assert "is not a directory" in watch(tmp_path / "none", "--watch").stderr
    assert watch(run_dir, "--port", 1).exit_code == 2
    assert watch(run_dir, "--watch", "--html", "-").exit_code == 2


def test_ctrl_c_ends_it_in_order(run_dir):
    command = [sys.executable, "-m", "mft_train", "report", str(run_dir), "--watch", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", url)
        with urllib.request.urlopen(url.strip(), timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (0, "", "")
