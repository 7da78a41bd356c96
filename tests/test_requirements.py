"""Dependencies: each has an upper bound, and the pinned packages of the tests are those that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")
ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCK = (ROOT / "requirements" / "ci.txt").read_text(encoding="utf-8")


def test_every_dependency_has_an_upper_bound():
    groups = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"], *EXTRAS.values()]
    unbounded = [line for group in groups for line in group if "<" not in line.partition(";")[0]]
    assert not unbounded


def test_pinned_packages_are_allowed_and_have_hashes():
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+).*\\\n    --hash=sha256:", LOCK, re.M))
    assert len(pinned) == len(re.findall(r"^[\w.-]+==", LOCK, re.M))
    for line in [*PROJECT["project"]["dependencies"], *EXTRAS["test"], *EXTRAS["dev"], *EXTRAS["real-model"]]:
        requirement = packaging.Requirement(line)
        version = pinned[requirement.name.lower().replace("_", "-")].partition("+")[0]
        assert requirement.specifier.contains(version), line


def test_pinned_packages_name_no_host():
    assert not re.search(r"://|--index-url|--find-links|file:|/opt/", LOCK)
