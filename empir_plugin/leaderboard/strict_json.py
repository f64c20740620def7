"""JSON files read strictly: what two readers could understand differently is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from empir_plugin.errors import InputError


def read_json(path: Path, what: str) -> Any:
    """The value in a UTF-8 file, without NaN and without a key that occurs twice.

    Args:
        path: The file.
        what: It should be, for the error: "a leaderboard entry".

    Raises:
        InputError: If the file is missing, or not such JSON.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "entry.json")
        >>> _ = path.write_text('{"eps": "8/255"}')
        >>> read_json(path, "a leaderboard entry")
        {'eps': '8/255'}
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, object_pairs_hook=_unique)
    except OSError as error:
        raise InputError(f"{path} cannot be read as {what} ({error.strerror or error}): check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no {what.partition(' ')[2]}: it is no valid JSON ({error})") from error


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"there is no {text}")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return table
