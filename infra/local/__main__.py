"""Start, stop or show the services on this host: ``python -m infra.local up|down|status``."""

import argparse
import sys
from pathlib import Path

from infra.local import Stack, is_alive


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("command", choices=["up", "down", "status"])
    options.add_argument(
        "--folder",
        type=Path,
        default=Path("data/local"),
        help="folder of files, logs and secrets (default: data/local)",
    )
    options.add_argument("--workers", type=int, default=2, help="worker nodes (default: 2)")
    options.add_argument(
        "--cpus", type=int, default=1, help="CPUs of each worker node (default: 1)"
    )
    args = options.parse_args()
    stack = Stack(args.folder)
    if args.command == "down":
        stack.down()
        return
    if args.command == "up":
        if any(map(is_alive, stack.pids.values())):
            sys.exit(f"{args.folder}: services are running; see python -m infra.local status")
        stack.pids.clear()
        stack.up(args.workers, args.cpus, print)
    for name, pid in stack.pids.items():
        state = "up" if is_alive(pid) else "DOWN"
        print(f"{name:10} {state:5} pid {pid:7}  log {stack.folder / name}.log")
    for name in ("RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        print(f"{name:22} {stack.settings()[name]}")
    print(f"use it:  source {stack.folder}/env")


if __name__ == "__main__":
    main()
