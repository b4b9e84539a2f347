"""What the SQLite files of policies share: transactions, and where SQLite's log (WAL) must not be used."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

NETWORKS = {"9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb2", "smb3", "smbfs"}
"""Kinds of file system where the log's shared memory does not reach all who use the file."""


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written in the block, or nothing; from its start nobody else writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some failures end it by themselves
            db.execute("ROLLBACK")
        raise


def filesystem(path: Path) -> str:
    """The kind of file system that a path is on, by Linux's list of mounts; "": not known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    real, best, kind = os.path.realpath(path), "", ""
    for line in lines:  # proc(5): ... mount point ... - kind source options
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), left.split(" ")[4])
        if len(point) >= len(best) and f"{real}/".startswith(f"{point.rstrip('/')}/"):
            best, kind = point, right.split(" ")[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether a kind of file system is, or may be, shared by machines."""
    return kind in NETWORKS or kind.startswith("fuse.")
