"""Runs all benchmarks, prints their tables and writes their figures as JSON.

Usage: python -m scripts.bench.run_all [report/bench.json]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "network",
    "transfer",
    "security",
    "collection",
    "averaging",
    "aggregation",
    "crowd",
    "simulator",
)


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "report/bench.json")
    tables = []
    for name in BENCHMARKS:
        run = subprocess.run(
            [sys.executable, "-m", f"scripts.bench.{name}"], stdout=subprocess.PIPE, text=True, check=True
        )
        *lines, figures = run.stdout.rstrip("\n").split("\n")
        print("\n".join(lines), flush=True)
        tables.append(json.loads(figures))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(tables, indent=2) + "\n")
    print(f"\nfigures in {target}")
    broken = [row["name"] for table in tables for row in table["results"] if row["kept"] is False]
    if broken:
        sys.exit(f"bounds not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
