"""Datasets on object stores, against a real S3 API on loopback."""

import pytest
from streaming import LocalDataset


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
