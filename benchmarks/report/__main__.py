"""``python -m benchmarks.report``."""

from __future__ import annotations

from benchmarks.report.write import Args, main
from hashgym.terminal import command_line, parse

if __name__ == "__main__":
    with command_line():
        main(parse(Args, "benchmarks.report"))
