"""``nrt doctor``: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from nrt import __version__
from nrt.cli.console import make_table, output, working, write_json
from nrt.insight.environment import examine

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Show the findings; 0 when the CPU target works, with or without a GPU."""
    with working("examining"):
        environment = examine()
    if args.json:
        write_json(
            {
                "nrt": __version__,
                "cpu_works": environment.cpu_works,
                "cuda_usable": environment.cuda_usable,
                "checks": [asdict(check) for check in environment.checks],
            }
        )
        return 0 if environment.cpu_works else 1
    table = make_table("", "check", "found")
    for check in environment.checks:
        mark = "ok" if check.ok else "missing"
        table.add_row(mark, check.name, check.found)
    console = output()
    console.print(f"nrt {__version__}")
    console.print(table)
    mends = [check for check in environment.checks if check.mend]
    for check in mends:
        console.print(f"{check.name}: {check.mend}")
    if mends:
        console.print()
    console.print(f"CPU target: {'works' if environment.cpu_works else 'does not work'}")
    console.print(f"CUDA target: {'usable' if environment.cuda_usable else 'not usable here'}")
    return 0 if environment.cpu_works else 1
