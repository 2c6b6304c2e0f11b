"""Datasets on object stores, against a real S3 API on loopback."""

import pytest
from click.testing import CliRunner
from streaming import LocalDataset

from mft_data.cli import main


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a real S3 API on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def test_sources_on_s3_and_stdin_give_the_rows_of_files_here(bucket, run, sources, tmp_path, helpers, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    bucket.create_bucket(Bucket="sources")
    for path in (sources / "large").iterdir():
        bucket.upload_file(str(path), "sources", f"data/large/{path.name}")
    bucket.put_object(Bucket="sources", Key="data/large/README.md", Body=b"not data")
    bucket.put_object(Bucket="sources", Key="data/larger/other.jsonl", Body=b"not asked for")
    run("build", sources / "large", "here")
    run("build", "s3://sources/data/large/", "there")
    assert helpers.tree(tmp_path / "there") == helpers.tree(tmp_path / "here")
    (tmp_path / "tasks.yaml").write_text("tasks:\n  large: {paths: 's3://sources/data/large'}\n")
    run("build", "tasks.yaml", "again")
    assert helpers.tree(tmp_path / "again") == helpers.tree(tmp_path / "here")
    run("build", f"one={sources / 'large' / 'a.jsonl'}", "one")
    run("build", "one=s3://sources/data/large/a.jsonl", "other")
    assert helpers.tree(tmp_path / "one") == helpers.tree(tmp_path / "other")
    assert (
        'source "s3://sources/no.jsonl" does not exist'
        in run("build", "t=s3://sources/no.jsonl", "o", exit_code=1).stderr
    )
    assert "has no file that ends in" in run("build", "t=s3://sources/none", "o", exit_code=1).stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_stdin_is_a_source(tmp_path, tokenizer_dir, sources, helpers, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = (sources / "large" / "a.jsonl").read_bytes()
    (tmp_path / "stdin.jsonl").write_bytes(content)
    options = ["--tokenizer", str(tokenizer_dir), "--seq-length", "128"]
    for source, out in (("t=-", "piped"), ("t=stdin.jsonl", "named")):
        result = CliRunner().invoke(main, ["build", source, out, *options], input=content)
        assert result.exit_code == 0, result.output
    assert helpers.tree(tmp_path / "piped") == helpers.tree(tmp_path / "named")
    result = CliRunner().invoke(main, ["preview", "t=-", "--rows", "1", *options], input=content)
    assert "stdin.jsonl line 1:" in result.stdout
    assert "write NAME=-" in CliRunner().invoke(main, ["build", "-", "out", *options], input=content).stderr
    both = CliRunner().invoke(main, ["build", "t=-", "u=-", "out", *options], input=content)
    assert "stdin is named twice" in both.stderr


def test_a_dataset_on_s3_has_the_bytes_of_a_local_one_and_streams_back(bucket, build, tmp_path, plain, monkeypatch):
    from streaming import StreamingDataset

    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    result = build("s3://bucket/sets/one")
    assert result.stdout == "s3://bucket/sets/one\n"
    listed = bucket.list_objects_v2(Bucket="bucket")["Contents"]
    objects = {entry["Key"]: bucket.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read() for entry in listed}
    assert objects == {f"sets/one/{name}": content for name, content in plain.items()}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "holds a dataset already" in build("s3://bucket/sets/one", exit_code=1).stderr
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    remote = "s3://bucket/sets/one/train/large"
    rows = StreamingDataset(remote=remote, local=str(tmp_path / "cache"), batch_size=1)
    assert len(rows) == len(LocalDataset(str(tmp_path / "plain" / "train" / "large")))
    assert sum(len(row["input_ids"]) for row in rows) > 0


def test_a_store_that_cannot_be_written_is_one_line(bucket, build):
    result = build("s3://nowhere/set", exit_code=1)
    assert result.stderr.count("\n") == 1
    assert '"s3://nowhere/set" cannot be written' in result.stderr


def test_an_upload_that_failed_is_gone_on_with(bucket, build, tmp_path, plain, monkeypatch):
    from streaming.base.storage import S3Uploader

    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    upload_file, sent = S3Uploader.upload_file, []

    def upload_some(uploader, name):
        if len(sent) == 4:
            raise ConnectionError("the network is down")
        sent.append(name)
        upload_file(uploader, name)

    with monkeypatch.context() as patch:
        patch.setattr(S3Uploader, "upload_file", upload_some)
        error = build("s3://bucket/one", exit_code=1).stderr
    assert "the network is down" in error
    assert "the finished work is kept in" in error
    with monkeypatch.context() as patch:
        patch.setattr("mft_data.execution.chunk_store.encode_chunk", lambda *_: pytest.fail("encoded again"))
        patch.setattr(
            S3Uploader, "upload_file", lambda uploader, name: sent.append(name) or upload_file(uploader, name)
        )
        build("s3://bucket/one", "--resume")
    assert sorted(sent) == sorted(plain)
    assert sent[-1] == "manifest.json"
    listed = bucket.list_objects_v2(Bucket="bucket", Prefix="one/")["Contents"]
    objects = {entry["Key"]: bucket.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read() for entry in listed}
    assert objects == {f"one/{name}": content for name, content in plain.items()}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_part_is_not_written_to_a_store(bucket, build):
    assert "a part needs a folder" in build("s3://bucket/one", "--part", "1/2", exit_code=1).stderr
