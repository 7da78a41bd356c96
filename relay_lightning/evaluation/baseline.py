"""Results on file: what a run has measured outlives an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, fields
from typing import Any

from relay_lightning.evaluation.evaluate import EvalResult, Judged


def dump_results(results: Mapping[str, EvalResult], identity: Mapping[str, Any]) -> str:
    """JSON of named results and of what they were measured on."""
    columns = [field.name for field in fields(Judged)]
    rows = {name: [astuple(judged) for judged in result.completions] for name, result in results.items()}
    return json.dumps({"identity": dict(identity), "columns": columns, "results": rows}) + "\n"


def load_results(text: str, identity: Mapping[str, Any]) -> dict[str, EvalResult]:
    """The results of `dump_results`; empty if a value of `identity` differs from the stored one.

    Raises ValueError for text that `dump_results` did not write.
    """
    try:
        stored = json.loads(text)
        found = {key: stored["identity"].get(key) for key in identity}
        results = {
            name: EvalResult(tuple(Judged(**dict(zip(stored["columns"], row, strict=True))) for row in rows))
            for name, rows in stored["results"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a file of results ({error})") from error
    return results if found == json.loads(json.dumps(dict(identity))) else {}
