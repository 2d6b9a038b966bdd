"""An S3 server on this machine, moto's, in a process of its own: it can be killed as a real one can go away."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "AKIAXDEEPSDTESTS", "wJalrXUtnFEMIverySECRETkeyOfTheTests"
BUCKET = "maps"


class Server:
    """A running server; ``environment`` is what a process needs to reach it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        for package in ("moto", "flask", "flask_cors", "s3fs"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install 'xdeepsd[test]'")
        self.log = folder / "s3.log"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        url = None
        deadline = time.monotonic() + 60
        while url is None:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
            url = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())
        self.environment = {
            "AWS_ENDPOINT_URL": url[0], "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def client(self, service="s3"):
        import boto3

        of = {name.lower(): value for name, value in self.environment.items()}
        return boto3.client(
            service, endpoint_url=of["aws_endpoint_url"], region_name="us-east-1",
            aws_access_key_id=of["aws_access_key_id"], aws_secret_access_key=of["aws_secret_access_key"],
        )  # fmt: skip

    def contents(self, prefix=""):
        """Every object below ``prefix``, by key."""
        s3 = self.client()
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def running(folder: Path, **environment: str):
    """A server with one empty bucket, killed at the end."""
    server = Server(folder, **environment)
    try:
        if not environment:
            server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.kill()


def reach(server, patch):
    """Set this process's environment to the server's, and make s3fs forget other servers and keys."""
    for name, value in server.environment.items():
        patch.setenv(name, value)
    forget()


def forget():
    """Make s3fs forget the connections and keys it has."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
