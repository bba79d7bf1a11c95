"""Commands one after another in one process, which imports torch once: a list of [module, word, ...] as JSON on stdin; on stdout
a list of [exit code, what it printed, what it said on stderr], as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys


def run(module: str, *words: str) -> tuple[int, str, str]:
    sys.argv = [module, *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    said = [run(*command) for command in json.load(sys.stdin)]
    print(json.dumps(said))
