"""What wheel and sdist hold: python ci/packages.py SOURCE WHEEL SDIST; SystemExit says what is missing or too much."""

import sys
import tarfile
import zipfile
from pathlib import Path

# What only a working copy needs.
NOT_IN_SDIST = (".github/", ".git_archival.txt", ".gitattributes", ".gitignore", ".pre-commit-config.yaml")


def wrong(kind: str, found: set[str], wanted: set[str]) -> list[str]:
    return [f"{kind}: {name} is missing" for name in sorted(wanted - found)] + [
        f"{kind}: {name} should not be there" for name in sorted(found - wanted)
    ]


def main(source: Path, wheel: Path, sdist: Path) -> None:
    every = (path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    files = {name for name in every if ".egg-info/" not in name}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        members = (member.name.partition("/")[2] for member in archive if member.isfile())
        in_sdist = {name for name in members if ".egg-info/" not in name and name not in ("PKG-INFO", "setup.cfg")}
    found = wrong("wheel", in_wheel, {name for name in files if name.startswith("xdeepsd/")})
    found += wrong("sdist", in_sdist, {name for name in files if not name.startswith(NOT_IN_SDIST)})
    if found:
        raise SystemExit("\n".join(found))
    print(f"wheel: {len(in_wheel)} files, {wheel.stat().st_size:,} bytes; sdist: {len(in_sdist)} files, "
          f"{sdist.stat().st_size:,} bytes")  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
