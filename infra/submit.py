"""Run a command as a job on the cluster, follow it, and end with its own exit code: ``python infra/submit.py -- dvc repro``.

As ``ray job submit --working-dir .``, which ends with 1 whatever went wrong, while our exit codes tell Kubernetes whether trying
again can help. The same command for the same settings joins or resumes a training, so it may be submitted as often as one likes.
Address and token come from ``RAY_API_SERVER_ADDRESS`` and ``RAY_AUTH_TOKEN``. SIGTERM stops the job with a checkpoint.
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
        "--no-wait", action="store_true", help="print the job's name and leave it alone"
    )
    options.add_argument(
        "command", nargs="+", help="what to run in a copy of this folder, on the head node"
    )
    given = options.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    runtime = {
        "working_dir": ".",
        "env_vars": {"EBM_GIT_COMMIT": commit},
    }  # no secrets: it is shown to all who may see jobs
    try:
        client = JobSubmissionClient()
        job = client.submit_job(entrypoint=shlex.join(given.command), runtime_env=runtime)
    except Exception as failed:  # Ray raises many kinds
        reason = str(failed).splitlines()[0][:300]
        raise ClusterError(
            f"no job was submitted: {reason}; set RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN, see ebm-dist doctor"
        ) from failed
    print(job, flush=True)
    if given.no_wait:
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
    """Print the job's output as it comes, until it ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    run(main)
