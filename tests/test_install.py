"""The exact versions of the packages."""

import re

from conftest import ROOT


def test_requirements_are_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines]
    packages = [package for package in packages if package]
    assert len(packages) > 15
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages), packages
