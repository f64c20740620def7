"""The border of the command line: whatever ends a command ends in one line and an exit code that says what it was.

=====================  ==============================================================================
exit code              meaning
=====================  ==============================================================================
0                      done
1                      done, and the answer is no (``check``, ``--fail-on-masking``)
2                      an error, in one sentence on standard error
128 + signal           stopped by SIGINT (130), SIGTERM (143) or SIGHUP (129); finished shards are kept
=====================  ==============================================================================
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click

from empir_cli.group import CommandError, CommandGroup

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal to stop. Like Ctrl-C it passes every ``except Exception``, and every ``finally`` runs.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class RootGroup(CommandGroup):
    """The command ``empir``: no traceback leaves it without ``--debug``, and signals end it in order."""

    debug = False

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command line; see the module for its exit codes."""
        self.debug = False
        with _signals_stop():
            try:
                return _flushed(super().main, *args, **settings)
            except Exception as error:  # Outside of any command, or while its output was written.
                if self.debug:
                    raise
                _discard_output()
                with contextlib.suppress(OSError):
                    _as_command_error(error).show()
                sys.exit(CommandError.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it does not catch becomes one sentence, unless there is ``--debug``."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signal.SIGINT)
            name = signal.Signals(number).name
            click.echo(
                f"Stopped by {name}: what was finished and stored is kept, run the same command to go on", err=True
            )
            raise click.exceptions.Exit(128 + number) from error
        except Exception as error:
            if self.debug:
                raise
            raise _as_command_error(error) from error


def debug_option(command: Any) -> Any:
    """The option ``--debug`` of a :class:`RootGroup`."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if isinstance(ctx.command, RootGroup):
            ctx.command.debug = value

    text = "Show the traceback of an error that empir did not expect."
    return click.option("--debug", is_flag=True, is_eager=True, expose_value=False, callback=remember, help=text)(
        command
    )


def _as_command_error(error: Exception) -> CommandError:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({_shorten(str(error.filename))})" if error.filename else ""
        return CommandError(f"the system refuses: {error.strerror}{where}; free some space, or choose another path")
    if isinstance(error, MemoryError):
        return CommandError("there is not enough memory: pass a smaller batch, or use a larger machine")
    from empir_plugin.errors import cause

    return CommandError(
        f"empir did not expect {cause(error)}: run `empir --debug ...` for the traceback, and report it"
    )


def _shorten(path: str) -> str:
    return path if len(path) <= _LONGEST else f"{path[:_LONGEST]}..."


_LONGEST = 100


def _flushed(run: Any, *args: Any, **settings: Any) -> Any:
    """Write the output out while errors of it can still be told."""
    try:
        return run(*args, **settings)
    finally:
        sys.stdout.flush()


def _discard_output() -> None:
    """Let what a full device refused vanish, or Python would complain again as it ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """Raise :class:`Stopped` at a signal; at the second one the system's own way, which waits for nothing.

    A signal that is ignored, as SIGHUP is under ``nohup``, stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in replaced:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    replaced: dict[int, Any] = {}
    try:
        for number in _SIGNALS:
            if (found := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, stop)
                replaced[number] = found
    except ValueError:  # Only the main thread may set handlers.
        pass
    try:
        yield
    finally:
        for number, found in replaced.items():
            signal.signal(number, found)
