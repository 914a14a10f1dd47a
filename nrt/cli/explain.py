"""``nrt explain``: why a layer is what it is."""

from __future__ import annotations

import argparse

from nrt.cli.console import output, write_json
from nrt.cli.source import build_report, is_plan, open_plan

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Explain ``args.layer``: of a model with its history, of a plan with what a plan holds."""
    from nrt.insight.explain import explain, explain_plan

    if is_plan(args.source):
        found = explain_plan(open_plan(args.source, args), args.layer)
    else:
        found = explain(build_report(args.source, args), args.layer)
    if args.json:
        write_json(found.to_data())
    else:
        output().print(str(found), soft_wrap=True)
    return 0
