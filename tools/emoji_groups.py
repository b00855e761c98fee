"""Write tessera/data/worlds/emoji_groups.json from Unicode's emoji-test.txt (Debian package `unicode-data`).

Usage: python -m tools.emoji_groups /usr/share/unicode/emoji/emoji-test.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

from tessera.data.worlds.emoji import family
from tessera.files import write_json

TARGET = Path(__file__).parent.parent / "tessera/data/worlds/emoji_groups.json"


def read_groups(path: Path) -> tuple[str, dict[str, dict[str, str]]]:
    """The file's version and its groups: {group: {subgroup: families separated by spaces}}."""
    version, group, subgroup = "", "", ""
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# Version:"):
            version = line.split(":")[1].strip()
        elif line.startswith("# group:"):
            group = line.split(":")[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":")[1].strip()
        elif "; fully-qualified" in line:
            sequence = "".join(chr(int(code, 16)) for code in line.split(";")[0].split())
            groups.setdefault(group, {}).setdefault(subgroup, {})[family(sequence)] = None
    return version, {name: {sub: " ".join(found) for sub, found in subs.items()} for name, subs in groups.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    version, groups = read_groups(Path(sys.argv[1]))
    source = f"Unicode emoji-test.txt {version}, © Unicode, Inc., used under the Unicode License"
    write_json(TARGET, {"source": source, "groups": groups})
