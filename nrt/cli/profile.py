"""``nrt profile``: the time of every launch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from nrt.cli.console import note, output, working, write_json
from nrt.cli.files import save_text
from nrt.cli.source import open_engine, read_inputs

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Profile ``args.source``; show it, and write the files that were asked for."""
    from nrt.insight.profile import Profile, profile

    files: dict[str, tuple[str, Callable[[Profile], str]]] = {
        "svg": ("times and roofline", Profile.to_svg),
        "trace": ("a trace for chrome://tracing or Perfetto", Profile.to_chrome_trace),
        "trtexec": ("times as of trtexec --exportProfile", Profile.to_trtexec),
    }
    engine = open_engine(args.source, args)
    inputs = read_inputs(engine.inputs, args.inputs, args.seed)
    with working("measuring"):
        found = profile(engine, inputs, repeats=args.repeats)
    for option, (what, text) in files.items():
        path = getattr(args, option)
        if path is not None:
            save_text(Path(path), text(found))
            note(f"{path}: {what}")
    if args.json:
        write_json(found.to_data())
    else:
        output().print(str(found), soft_wrap=True)
    return 0
