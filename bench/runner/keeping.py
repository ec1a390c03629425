"""What the runner does for bench/compiled.py: pack what torch.compile and Triton made here, and unpack what they made in an earlier runner.

pack      {most}   write it to a descriptor, as one archive; nothing where it is more than so many bytes
unpack    {}       read it from a descriptor, before anything of the candidate's is loaded
"""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FROM = "from"  # a file beside what is kept, which names the folder where it lay
KEPT = ("triton", "inductor")


class Keeping:
    def do_pack(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        folder = _folder()
        sizes: dict[Path, int] = {}
        # Not by Path.rglob, which in Python 3.11 fails where a compiler deletes a folder meanwhile.
        walked = (found for kept in KEPT for found in os.walk(folder / kept))
        for path in (Path(where, name) for where, _, names in walked for name in names):
            with contextlib.suppress(FileNotFoundError):  # a compiler's file, gone meanwhile
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    sizes[path] = found.st_size
        with open(fd, "wb") as file:
            if sizes and sum(sizes.values()) < request["most"]:
                (folder / FROM).write_bytes(os.fsencode(folder))
                with tarfile.open(fileobj=file, mode="w") as archive:
                    for path in (folder / FROM, *sizes):
                        with contextlib.suppress(FileNotFoundError):
                            archive.add(path, path.relative_to(folder), recursive=False)
        return {}

    def do_unpack(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        folder = _folder()
        with open(fd, "rb") as file, tarfile.open(fileobj=file) as archive:
            # Python 3.11.2, which Debian 12 has, knows no filters yet; what is written stays in the runner's own folder there too.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            archive.extractall(folder)
        # Triton's list of a kernel's files has whole paths; a kernel whose files are not found is compiled again.
        before, now = (folder / FROM).read_bytes(), os.fsencode(folder)
        for group in (folder / "triton").glob("*/__grp__*.json"):
            group.write_bytes(group.read_bytes().replace(before, now))
        return {}


def _folder() -> Path:
    return Path(os.environ["TRITON_CACHE_DIR"]).parent
