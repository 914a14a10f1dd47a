"""The ``nrt`` command. The only part of the package that writes to the standard streams.

Exit codes: 0 success, 1 a comparison or a check failed, 2 an error that one message explains, 130
interrupted. The commands' modules are imported when they are used, so that ``nrt --help`` does not
wait for a compiler.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from nrt.cli.parser import make_parser
from nrt.errors import NrtError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "build": "nrt.cli.build",
    "run": "nrt.cli.run",
    "bench": "nrt.cli.bench",
    "inspect": "nrt.cli.inspect",
    "diff": "nrt.cli.diff",
    "explain": "nrt.cli.explain",
    "profile": "nrt.cli.profile",
    "calibrate": "nrt.cli.calibrate",
    "compare": "nrt.cli.compare",
    "ablate": "nrt.cli.ablate",
    "doctor": "nrt.cli.doctor",
    "demo": "nrt.cli.demo",
}
"""Command -> the module whose ``run(args) -> int`` carries it out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; None takes them from the process.
    """
    args = make_parser().parse_args(argv)
    try:
        _load_plugins(getattr(args, "plugins", ()))
        code: int = import_module(COMMANDS[args.command]).run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`head`) left. Python flushes once more at exit, which must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except NrtError as error:
        return _fail(str(error), args.verbose)
    except OSError as error:
        subject = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{subject}{error.strerror or error}", args.verbose)
    except KeyboardInterrupt:
        sys.stderr.write("\nnrt: interrupted\n")
        return 130
    return code


def _load_plugins(paths: Sequence[str]) -> None:
    if paths:
        from nrt.extend import load_plugin

        for path in paths:
            load_plugin(path)


def _fail(message: str, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    sys.stderr.write(f"nrt: error: {message}\n")
    return 2
