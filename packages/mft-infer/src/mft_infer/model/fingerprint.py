"""The fingerprint of a model: which one it is, in the time of a few reads."""

import hashlib
from pathlib import Path
from typing import Any

WHOLE_BYTES = 64 << 20
NUM_BLOCKS = 64
BLOCK_BYTES = 64 << 10
SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")


def fingerprint(sources: tuple[str, ...], config: Any) -> str:
    """Hex digest of a model's files: names, sizes and contents; `config` is the loaded one.

    Of a file above 64 MiB, 64 blocks of 64 KiB spread evenly over it stand for the contents. A hub id goes with the
    commit that was loaded.
    """
    digest = hashlib.sha256()
    for source in sources:
        if not Path(source).is_dir():
            digest.update(f"{source}@{getattr(config, '_commit_hash', None)}\n".encode())
            continue
        for path in sorted(Path(source).iterdir()):
            if path.is_file() and path.suffix in SUFFIXES:
                digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
                _add_contents(path, digest)
    return digest.hexdigest()


def _add_contents(path: Path, digest: "hashlib._Hash") -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
            return
        for index in range(NUM_BLOCKS):
            file.seek(index * (size - BLOCK_BYTES) // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
