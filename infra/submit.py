"""Run a command as a job on the cluster: ``python infra/submit.py -- dvc repro``.

The exit code is that of the command. ``ray job submit --working-dir .`` ends with 1 after every
error, while the exit codes of this project tell Kubernetes whether a retry can help. The same
command for the same settings joins or resumes a training, so it may be submitted several times.
``RAY_API_SERVER_ADDRESS`` and ``RAY_AUTH_TOKEN`` give address and token. SIGTERM stops the job with
a checkpoint.
"""

import argparse
import asyncio
import shlex
import signal
import subprocess
import sys

from ray.job_submission import JobSubmissionClient

from ebm_dist.errors import ClusterError
from pipelines import run

_STOPPED = 143


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--no-wait", action="store_true", help="print the name of the job and return"
    )
    options.add_argument(
        "command", nargs="+", help="command to run on the head node, in a copy of this folder"
    )
    args = options.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    runtime = {
        "working_dir": ".",
        "env_vars": {"EBM_GIT_COMMIT": commit},
    }  # no secrets: everyone who may list jobs sees it
    try:
        client = JobSubmissionClient()
        job = client.submit_job(entrypoint=shlex.join(args.command), runtime_env=runtime)
    except Exception as error:  # Ray raises many kinds
        reason = str(error).splitlines()[0][:300]
        raise ClusterError(
            f"no job was submitted: {reason};"
            " set RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN, see ebm-dist doctor"
        ) from error
    print(job, flush=True)
    if args.no_wait:
        return
    signal.signal(signal.SIGTERM, lambda *_: client.stop_job(job))
    asyncio.run(follow(client, job))
    info = client.get_job_info(job)
    print(f"{job}: {info.status.name}", flush=True)
    code = info.driver_exit_code
    sys.exit(
        _STOPPED
        if info.status.name == "STOPPED"
        else code
        if code is not None
        else int(info.status.name != "SUCCEEDED")
    )


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print the output of a job as it comes, until the job ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    run(main)
