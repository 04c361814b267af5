"""Every check that needs a GPU, in order of weight, in about eight minutes, with results to send in.

    python -m tests.gpu_check                              on the first GPU
    python -m tests.gpu_check --only pools graphs          some of the checks in gpu_steps.py
    python -m tests.gpu_check --device cpu --small         the checks themselves, without a GPU

Each check is a process of its own: one that dies or hangs costs its own seconds only. ``results.json``,
``results.txt`` and ``log.txt`` are written after each check, so that what was found is there whatever comes next. Exit
code 1 if a check failed or had no time.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.gpu_steps import CHECKS, ROOT, Setup, run

STAGES: tuple[dict[str, int], ...] = (
    {"machine": 30},
    {"pools": 30},
    {"garbage": 30},
    {"graphs": 75},
    {"tests": 100, "train": 100, "resume": 100, "verify": 100, "two": 60, "deform": 40},  # at once: no times are taken
    {"sweep": 60},
    {"benchmark": 110},
    {"compile": 110},
    {"networks": 50},
)
"""The checks and the most seconds of each: a stage after another, the checks of a stage at once."""

MARK = "RESULT "
"""What the line begins with in which the process of a check tells its result."""

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")


class Given(NamedTuple):
    """The command line."""

    device: str
    small: bool
    seconds: float
    only: list[str]
    out: Path
    work: Path | None
    check: str | None


def parsed(arguments: list[str] | None = None) -> Given:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a test of the checks")
    parser.add_argument("--small", action="store_true", help="few examples, small networks")
    parser.add_argument("--seconds", type=float, default=470, help="for all checks")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK")
    default = Path(os.environ.get("OUT", "runs/gpu-check"))
    parser.add_argument("--out", type=Path, default=default, help="folder of the results")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    return Given(**vars(parser.parse_args(arguments)))


def tell(given: Given) -> None:
    """Run one check in this process and print its result."""
    assert given.check and given.work
    setup = Setup.of(given.device, given.small, given.work, given.seconds)
    print(MARK + json.dumps(CHECKS[given.check](setup)), flush=True)


def outcome(name: str, most: int, given: Given, work: Path, end: float) -> tuple[str, dict[str, Any], str]:
    """The name, result and output of a check that has ``most`` seconds, and must end at ``end``."""
    left = end - time.monotonic()
    if left < 8:
        return name, {"ok": False, "said": ["no time was left"]}, ""
    seconds = min(most, left - 3)
    command = [sys.executable, "-m", "tests.gpu_check", "--check", name, "--device", given.device, "--work", str(work)]
    command += ["--seconds", f"{seconds:.0f}", *["--small"] * given.small]
    environment = os.environ | THREADS | {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    code, output, took = run(command, seconds + 4, cwd=ROOT, env=environment)
    told = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
    failed = {"ok": False, "code": code, "said": output.strip().splitlines()[-4:]}
    return name, (json.loads(told[-1]) if told else failed) | {"took": round(took, 1)}, output


def line_of(name: str, found: dict[str, Any]) -> str:
    """A result as a line of text."""
    rest = {key: value for key, value in found.items() if key not in ("ok", "took")}
    verdict = "ok" if found["ok"] else "FAILED"
    return f"{name:10} {verdict:7} {found.get('took', 0):6.1f} s  {json.dumps(rest, ensure_ascii=False)[:1500]}"


def main() -> None:
    """All checks."""
    given = parsed()
    if given.check:
        return tell(given)
    end, results = time.monotonic() + given.seconds, dict[str, dict[str, Any]]()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (given.out / "log.txt").open("w", encoding="utf-8") as log:
        Setup.of("cpu", given.small, Path(folder), 60).unpack()  # once, before checks run at once
        for stage in STAGES:
            chosen = {name: most for name, most in stage.items() if name in given.only}
            with ThreadPoolExecutor(len(stage)) as together:
                started = [together.submit(outcome, *pair, given, Path(folder), end) for pair in chosen.items()]
                for done in started:
                    name, found, output = done.result()
                    results[name] = found
                    log.write(f"===== {name}\n{output[-200_000:]}\n")
                    log.flush()
                    (given.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
                    (given.out / "results.txt").write_text(
                        "\n".join(map(line_of, results, results.values())) + "\n", encoding="utf-8"
                    )
                    print(line_of(name, found)[:700], flush=True)
    failed = [name for name, found in results.items() if not found["ok"]]
    print(f"{len(results)} checks, failed: {', '.join(failed) or 'none'}; results in {given.out}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
