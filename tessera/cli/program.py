"""From a command line to a command: names, help, and how every ending looks.

Exit codes: 0 done; 2 a user's mistake or a refusal, said in one sentence; 130 and 143 stopped by Ctrl-C or
SIGTERM.
Modules of commands, and through them the heavy libraries, are imported when their command is run.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from tessera import __version__
from tessera.cli.options import parse
from tessera.errors import TesseraError, UserError, nearest

# Command -> (where, in one line what). A command is a dataclass of options with a method `run`.
COMMANDS = {
    "papers": ("catalogue:Papers", "the works, with their lights and capabilities"),
    "show": ("catalogue:Show", "one work: what it is, its parts, stages, claims, figures"),
    "size": ("catalogue:Size", "its parameters, FLOPs and tokens at published size"),
    "train": ("training:Train", "train it on the embedded worlds or on your files"),
    "reproduce": ("training:Reproduce", "the study of its claims; writes results/SLUG.json"),
    "caption": ("using:Caption", "say what pictures show"),
    "ask": ("using:Ask", "answer questions about a picture"),
    "draw": ("using:Draw", "draw what sentences say"),
    "sample": ("using:Sample", "draw new pictures of a class, or of any"),
    "reconstruct": ("using:Reconstruct", "pictures through a model's codes and back"),
    "chat": ("using:Chat", "talk, with pictures in and out"),
    "classify": ("using:Classify", "say which class pictures show"),
    "segment": ("using:SegmentImages", "classes of pixels, the thing that a phrase names, or depth, as PNG files"),
    "embed": ("using:Embed", "pictures or sentences as vectors"),
    "evaluate": ("using:Evaluate", "scores with 95 % intervals"),
    "act": ("acting:Act", "let a policy act in an environment, and film it"),
    "cases run": ("cases:CasesRun", "ask a model or an endpoint multiple-choice cases; writes a page"),
    "cases votes": ("cases:CasesVotes", "how human readers voted on cases"),
    "cases write": ("cases:CasesWrite", "write cases made from the scenes world"),
    "zoo list": ("stock:ZooList", "the mini parts that ship with the package"),
    "zoo build": ("stock:ZooBuild", "train a mini part anew"),
    "worlds list": ("stock:WorldsList", "the embedded worlds"),
    "worlds show": ("stock:WorldsShow", "some samples of a world, as one picture and text"),
    "worlds export": ("stock:WorldsExport", "write a world as WebDataset shards or a LeRobot data set"),
    "bench": ("benching:Bench", "speed against the peers and against this machine's ceiling"),
    "doctor": ("doctor:Doctor", "what this machine can run"),
}
# Errors of the system that the user can cure, and no bug of ours: what is in the way, full, or not permitted.
OUTSIDE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EIO,
)  # fmt: skip
HELP = ("-h", "--help", "help")
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def usage(group: str = "") -> str:
    """The page that `tessera --help` prints, or `tessera GROUP --help` of the commands that begin with this word."""
    shown = {name: what for name, (_, what) in COMMANDS.items() if not group or name.split()[0] == group}
    width = max(len(name) for name in shown)
    lines = [f"  {name:<{width}}  {what}" for name, what in shown.items()]
    return "\n".join(
        [
            f"Tessera {__version__}: models that see, say and draw.",
            "",
            "usage: tessera COMMAND [OPTIONS]        `tessera COMMAND --help` says more",
            "",
            *lines,
        ]
    )


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that `words` begin with, and what follows it.

    Raises:
        UserError: there is none; the nearest is named.
    """
    first, rest = words[0], list(words[1:])
    if first in COMMANDS:
        return first, rest
    if first not in GROUPS:
        raise UserError(f"there is no command {first!r}{nearest(first, [*COMMANDS, *GROUPS])}")
    inner = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
    if not rest or rest[0] not in inner:
        if not rest:
            raise UserError(f"{first!r} needs a word after it: {' or '.join(inner)}")
        raise UserError(f"there is no command {f'{first} {rest[0]}'!r}{nearest(rest[0], inner)}")
    return f"{first} {rest[0]}", rest[1:]


def run(words: Sequence[str]) -> None:
    """Run the command line `words` (without the program's name)."""
    if not words or words[0] in HELP:
        print(usage())
        return
    if words[0] in GROUPS and words[1:2] and words[1] in HELP:
        print(usage(words[0]))
        return
    if words[0] in ("-V", "--version"):
        print(__version__)
        return
    name, rest = find(words)
    module, options = COMMANDS[name][0].split(":")
    command: Any = getattr(import_module(f"tessera.cli.{module}"), options)
    parse(command, rest, f"tessera {name}").run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `arguments` (default: the process's own) and give the exit code."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return 0
    except TesseraError as error:
        print(f"tessera: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        print("tessera: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        place = error.filename or "a file"
        print(f"tessera: {place} cannot be used: {error.strerror}; choose another path, or free it", file=sys.stderr)
        return 2
