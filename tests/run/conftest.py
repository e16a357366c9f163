"""Databases for tests: a real PostgreSQL server, started once, and a fresh journal in either kind of database."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


class Postgres:
    """A server of the tests' own, on loopback. Its programs refuse to run as root, so they run as the user `postgres` there."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder, self._numbers = programs, folder, itertools.count()
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._do("initdb", "-D", str(folder / "data"), "-U", "keystep", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def _do(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.programs / program), *arguments], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, **self.user,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def _control(self, *arguments: str) -> None:
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", *arguments)

    def start(self) -> None:
        self._control("-o", f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=50 -c fsync=off", "start")

    def stop(self, mode: str = "fast") -> None:
        self._control("-m", mode, "stop")

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self._do("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "keystep", "-q", "-c", f"CREATE DATABASE {name}", "postgres")
        return f"postgresql://keystep@127.0.0.1:{self.port}/{name}"


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    there = shutil.which("initdb")
    return found[-1].parent if found else Path(there).resolve().parent if there else None


@pytest.fixture(scope="session")
def postgres():
    programs = _programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL server here")
    with tempfile.TemporaryDirectory(prefix="keystep-pg-") as folder:  # short: a socket's path has 107 characters at most
        server = Postgres(programs, Path(folder))
        yield server
        server.stop("immediate")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A fresh journal's URL, in either kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    return request.getfixturevalue("postgres").fresh()
