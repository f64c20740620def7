"""Command groups that report the library's errors in one sentence, without a traceback."""

from __future__ import annotations

from typing import Any

import click


class CommandError(click.ClickException):
    """An error in what the user asked for: printed as one sentence, exit code 2."""

    exit_code = 2


class CommandGroup(click.Group):
    """A group of commands that turns every :class:`~empir_plugin.errors.EmpirError` into a :class:`CommandError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exit with code 2 and one sentence if the library raises an error of its own."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from empir_plugin.errors import EmpirError

            if isinstance(error, EmpirError):
                raise CommandError(str(error)) from error
            raise
