"""A runner in a pod: it claims its attempt with the pod's token, and becomes the runner.

`python -m fedfleet_coordinator.runner.pod --home DIR --url URL --run RUN --attempt N --token FILE`; the CA by which it
knows the coordinator is in FEDFLEET_CA. A coordinator that is away is waited for. Exit code 4: the attempt is over.
"""

import argparse
import json
import os
import ssl
import sys
import time
from pathlib import Path

import urllib3

FENCED = 4
CRASHED = 1
_PATIENCE_S = 600.0
_RETRY_S = 1.0
_JSON = {"Content-Type": "application/json"}


def main() -> int:
    """Claim, and become the runner; return an exit code if that is not to be."""
    parser = argparse.ArgumentParser(prog="python -m fedfleet_coordinator.runner.pod")
    for name in ("--url", "--run"):
        parser.add_argument(name, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    for name in ("--home", "--token"):
        parser.add_argument(name, type=Path, required=True)
    asked = parser.parse_args()
    ca = os.environ["FEDFLEET_CA"]
    claimed = _claim(asked.url, asked.run, asked.attempt, asked.token, ca)
    if isinstance(claimed, int):
        return claimed
    asked.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = {"url": asked.url, "run": asked.run, "epoch": claimed["epoch"], "memory_bytes": 0, "file_bytes": 0}
    files = {
        "runner.json": json.dumps(told), "runner.pem": claimed["certificate"], "runner.key": claimed["key"],
        "ca.pem": ca,
    }  # fmt: skip
    for name, text in files.items():
        with os.fdopen(os.open(asked.home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
    command = [sys.executable, "-m", "fedfleet_coordinator.runner", "--home", str(asked.home)]
    environment = {name: value for name, value in os.environ.items() if name != "FEDFLEET_CA"}
    return os.execve(command[0], command, environment)  # noqa: S606


def _claim(url: str, run: str, attempt: int, token: Path, ca: str) -> dict[str, str] | int:
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=urllib3.Timeout(connect=5.0, read=20.0))
    until = time.monotonic() + _PATIENCE_S
    said = ""
    while time.monotonic() < until:
        body = json.dumps({"attempt": attempt, "token": token.read_text()})  # read anew: the kubelet renews it
        try:
            answer = pool.request(
                "POST", f"{url}/v1/claims/{run}", body=body, headers={"Content-Type": "application/json"}
            )
            told = json.loads(answer.data)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            answer, told = None, {"text": str(error)}
        if answer is not None and answer.status == 200:
            return dict(told)
        if str(told.get("text")) != said:
            said = str(told.get("text"))
            sys.stderr.write(f"attempt {attempt} is not claimed yet: {said}\n")
        if answer is not None and answer.status in (404, 409, 410):
            return FENCED
        if answer is not None and 400 <= answer.status < 500 and answer.status not in (408, 429):
            return CRASHED
        time.sleep(_RETRY_S)
    return CRASHED


if __name__ == "__main__":
    sys.exit(main())
