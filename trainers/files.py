"""Files that outlive a process: written whole or not at all, and named by what is in them. Without torch."""

import hashlib
import json
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def digest(*values: object) -> str:
    """A short name for values: 16 hex digits of SHA-256 over their JSON, or over their bytes as they are."""
    sha = hashlib.sha256()
    for value in values:
        sha.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode())
    return sha.hexdigest()[:16]


def curve_folder(place: int) -> str:
    """Where the files of a point of the pruning curve are, from its trial's folder."""
    return f"curve/{place}"
