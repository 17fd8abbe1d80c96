"""Python programs that a test starts beside itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def started(source: str, *arguments: object) -> subprocess.Popen[str]:
    """The process of a program in the checkout, whose input stays open and whose output is read."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
