"""TOML, from the standard library where it has it."""

import sys

if sys.version_info >= (3, 11):
    from tomllib import TOMLDecodeError as TOMLDecodeError
    from tomllib import loads as loads
else:
    from tomli import TOMLDecodeError as TOMLDecodeError  # pyright: ignore[reportMissingImports]
    from tomli import loads as loads  # pyright: ignore[reportMissingImports]
