"""What the library refuses, told in one sentence."""

from __future__ import annotations

from typing import Any

import click


class Refusal(click.ClickException):
    """An error the library raised on purpose: one sentence, exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Commands that answer the library's own errors with their sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; exit with 2 and one sentence if the library refuses."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from empir_plugin.errors import EmpirError

            if isinstance(error, EmpirError):
                raise Refusal(str(error)) from error
            raise
