"""What a user's machine may be: other systems, and exact versions of the packages."""

import re

from conftest import ROOT

# Modules of the standard library that Windows lacks.
UNIX_ONLY = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}


def test_no_unix_only_import_at_the_top_of_a_module():
    rooms = [ROOT / room for room in ("adv", "dare", "data", "train")]
    modules = [path for room in rooms for path in room.rglob("*.py")]
    assert len(modules) > 40
    for path in modules:
        imported = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
        assert not UNIX_ONLY & {*imported}, path


def test_requirements_are_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line.split("#")[0].strip() for line in lines]
    packages = [package for package in packages if package]
    assert len(packages) > 15
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages), packages
