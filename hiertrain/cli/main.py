"""``hiertrain``: what people do without a notebook. Every command reads and writes the JSON files of the workbench.

Exit status: 0 success, 1 a worker or notebook failed, 2 bad input (one line says what), 130 interrupted, 141 nobody
reads what is printed. Whatever takes long to import is imported where ``main`` already answers an interrupt.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see ``hiertrain --help``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up like Ctrl-C
    if sys.stdout is None:
        _say("error: standard output is closed; it must be open, such as to /dev/null")
        return 2
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _say(str(error) or "interrupted")
        return 130
    except BrokenPipeError:  # whoever read what is printed has seen enough
        _print_no_more()
        return 141
    except OSError as error:  # such as a full disk behind standard output
        _print_no_more()
        _say(f"failed: {error.filename}: {error.strerror}" if error.filename else f"failed: {error.strerror}")
        return 1
    return status


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command. Raises only what comes from outside: an interrupt, and OSError of what is printed."""
    from pydantic import ValidationError

    from hiertrain.cli.arguments import parser
    from hiertrain.values import InputError, RunError, broken_rule, shown

    try:
        options = parser().parse_args(arguments)
        options.command(options)
    except SystemExit as end:  # of argparse, which has printed the help or an error
        return int(end.code or 0)
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except ValidationError as error:  # what was given is within its bounds, what was computed from it is not
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        _say(f"failed: a computed {error.title} has the {where} {shown(first['input'])}: {broken_rule(first)}")
        return 1
    except ModuleNotFoundError as error:  # a worker's machine has only what workers need
        _say(f"error: this command needs {error.name}; in a checkout: pip install '.[notebooks]'")
        return 2
    except RunError as error:
        for note in getattr(error, "__notes__", ()):  # tracebacks of the workers
            print(note, file=sys.stderr)
        _say(f"failed: {error}")
        return 1
    return 0


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(f"hiertrain: {text}", file=sys.stderr)


def _print_no_more() -> None:
    """Python tries once more at its end, and would then print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
