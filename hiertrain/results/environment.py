"""Where and with what something ran: commit, sources, host, versions."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from hiertrain.paths import ROOT
from hiertrain.values import Threads, Value


class Environment(Value):
    """Where and with what something ran."""

    commit: str | None  # None outside a git checkout of the workbench
    dirty: bool | None  # whether tracked files differed from the commit
    source: str | None = None  # in records of before they said what they depend on: digest of all source files
    host: str
    cpu: str
    cores: Threads
    os: str
    python: str
    versions: dict[str, str]  # of the workbench and of every package that it depends on directly
    time_utc: datetime


def environment_record() -> Environment:
    """This machine, this Python and this checkout, now."""
    commit = _git("rev-parse", "HEAD") if _git("rev-parse", "--show-toplevel") == str(ROOT) else None
    return Environment(
        commit=commit,
        dirty=None if commit is None else _git("status", "--porcelain", "--untracked-files=no") != "",
        host=platform.node(),
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        os=platform.platform(),
        python=platform.python_version(),
        versions=package_versions(),
        time_utc=datetime.now(UTC).replace(microsecond=0),
    )


def package_versions() -> dict[str, str]:
    """Installed versions, by name: of the workbench and of its direct dependencies but for tools of development."""
    requirements = [line for line in metadata.requires("hiertrain") or [] if not re.search(r"extra == .dev", line)]
    versions = {"hiertrain": metadata.version("hiertrain")}
    for name in sorted(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements):
        with suppress(metadata.PackageNotFoundError):  # of an extra that this machine does without
            versions[name] = metadata.version(name)
    return versions


def _git(*arguments: str) -> str | None:
    """What git prints about the workbench's folder; None without git or outside a repository.

    Git refuses a folder of another user, for what its settings may execute; but this very code is from there, too.
    """
    try:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """The processor's name as its system gives it, else only its architecture."""
    if platform.system() == "Darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1] if found else platform.machine()
