"""A server that speaks S3 on this machine, and the environment that leads there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "s3://marquee-test"


@contextmanager
def s3_server() -> Iterator[None]:
    """Within the block s3:// is this server, for this process and those that it starts."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def put(folder: Path, url: str) -> None:
    """Every file of a folder as an object below `url`."""
    import s3fs

    for file in folder.rglob("*"):
        if file.is_file():
            s3fs.S3FileSystem().put_file(str(file), f"{url}/{file.relative_to(folder).as_posix()}")
