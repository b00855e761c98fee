"""Runs that are killed for real, each in a forked child of one process that has imported torch once.

python -m tests.train.children SCENARIO OUT      prints one JSON object
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch._dynamo  # optimisers import it at their first step: once here, not once a child
from safetensors.torch import save_file
from torch import nn

from tessera import files
from tessera.errors import TesseraError
from tessera.tokenizers.quantiser import Quantiser
from tessera.train import checkpoint
from tessera.train.engine import Callback, Stage, Trainer
from tests.train.tiny import TinyLoader, tiny_stage, two_stages


def start(work: Callable[[], None], log: Path, **environment: str) -> int:
    """Run `work` in a child; its messages go to `log`. Returns the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            work()
        except TesseraError as error:
            sys.stderr.write(f"{error}\n")
            code = getattr(error, "exit_code", 2)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            code = 99
        sys.stderr.flush()
    os._exit(code)


def end(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(out: Path, resume: bool = True, callbacks: Sequence[Callback] = ()) -> None:
    Trainer(out, save_every=3, resume=resume, device="cpu", callbacks=callbacks).run(two_stages())


def asks(out: Path, step: int, number: int) -> None:
    """Train, and send this process a signal at a step."""
    train(out, callbacks=[Callback(every=step, function=lambda event: os.kill(os.getpid(), number))])


def dies(out: Path, step: int, calls: int) -> None:
    """Train, and be killed so many calls of functions after a step."""
    left = [calls]

    def count(frame: FrameType, event: str, argument: Any) -> None:
        left[0] -= event == "call"
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    train(out, callbacks=[Callback(every=step, function=lambda event: sys.setprofile(count))])


def kills(out: Path) -> dict[str, Any]:
    """Five kill -9 at random moments; SIGTERM and SIGINT once each, at one step; then to the end."""
    draws = random.Random(5)
    codes = []
    for steps in (2, 6, 11, 14, 20):
        work = partial(dies, out / "killed", steps, draws.randint(1, 400))
        codes.append(end(start(work, out / "killed.log")))
    codes.append(end(start(lambda: train(out / "killed"), out / "killed.log")))
    for steps, number in ((4, signal.SIGTERM), (16, signal.SIGINT)):
        work = partial(asks, out / "asked", steps, number)
        codes.append(end(start(work, out / "asked.log")))
    codes.append(end(start(lambda: train(out / "asked"), out / "asked.log")))
    return {"codes": codes}


def dies_in_save(out: Path, where: str, call: int) -> None:
    """Train, and be killed at the `call`-th time that `where` is reached in a save."""
    reached = [0]
    owner, name = {"file": (checkpoint, "save_file"), "state": (checkpoint, "write_json"), "flush": (files, "_flush")}[
        where
    ]
    before = getattr(owner, name)

    def deadly(*arguments: Any) -> Any:
        reached[0] += 1
        if reached[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments)

    setattr(owner, name, deadly)
    train(out)


def saves(out: Path) -> dict[str, Any]:
    """kill -9 inside saves: before a file, before the state, before the manifest, before and after the rename."""
    codes = []
    moments = [("file", 1), ("file", 2), ("state", 3), ("state", 4), ("flush", 4), ("flush", 6), ("flush", 7)]
    for where, call in moments:
        code = end(start(lambda w=where, c=call: dies_in_save(out / "killed", w, c), out / "killed.log"))  # type: ignore[misc]
        codes.append(code)
    codes.append(end(start(lambda: train(out / "killed"), out / "killed.log")))
    return {"codes": codes, "log": (out / "killed.log").read_text()}


class Towers(nn.Module):
    """Text [B, 8] and pictures [M, 8] -> [B, 5]; a batch without pictures leaves the vision tower out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text, self.vision, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x[:, 0] > 0  # these samples have a picture
        hidden = self.text(x)
        if seen.any():
            hidden = hidden.index_add(0, seen.nonzero().flatten(), self.vision(x[seen]))
        return self.head(torch.nn.functional.gelu(hidden))


class SortedLoader(TinyLoader):
    """The samples of a global batch sorted, those with pictures first: the last process gets text alone."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        whole = TinyLoader(self.total, self.size * self.world, self.seed)
        for batch in whole:
            order = batch["x"][:, 0].argsort(descending=True)[self.rank * self.size :][: self.size]
            yield {"x": batch["x"][order], "y": batch["y"][order], "order": batch["order"]}


def towers(rank: int, world: int, size: int) -> Iterator[Stage]:
    loader = SortedLoader(size=size // world, rank=rank, world=world)
    yield tiny_stage("towers", steps=6, model=Towers(), loader=loader)


class Coded(nn.Module):
    """[B, 8] -> [B, 5] by one of 16 codes, most of which nobody chooses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.quantiser = nn.Linear(8, 4), Quantiser(4, 16, restart=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.quantiser(self.before(x)[:, None]).states[:, 0])


def coded(trainer: Trainer) -> Iterator[Stage]:
    """Codes that restart; each process leaves its own in OUT-RANK.safetensors."""
    model = Coded()
    loader = TinyLoader(size=8 // trainer.world, rank=trainer.rank, world=trainer.world)
    yield tiny_stage("coded", steps=6, model=model, loader=loader)
    save_file({"codes": model.quantiser.codes.weight.detach()}, f"{trainer.out}-{trainer.rank}.safetensors")


class DeadlyLoader(TinyLoader):
    """Sends its process `number` at the 10th batch."""

    number = signal.SIGKILL

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for count, batch in enumerate(super().__iter__()):
            if count == 9:
                os.kill(os.getpid(), self.number)
            yield batch


def group(work: Callable[[], None], world: int, log: Path, **environment: str) -> list[int]:
    """Exit codes of `world` processes that do `work` together; each writes to `log`-RANK.log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        texts = {key: str(value) for key, value in place.items()} | {
            "MASTER_ADDR": "127.0.0.1",
            "TESSERA_TIMEOUT": "60",
        }
        mine = log.with_name(f"{log.name}-{rank}.log")
        pids.append(start(work, mine, **(texts if world > 1 else {}), **environment))
    return [end(pid) for pid in pids]


def ranks(out: Path, recipe: Callable[[Trainer], Iterator[Stage]], world: int, **environment: str) -> list[int]:
    """Exit codes of `world` processes that train `recipe` together."""

    def work() -> None:
        trainer = Trainer(out, save_every=5, resume=True, device="cpu", precision="fp32")
        trainer.run(recipe(trainer))

    return group(work, world, out, **environment)


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def together(out: Path) -> dict[str, Any]:
    """One process, DDP and FSDP2 on two stages and on text-only ranks; two with a codebook; then one of two killed or
    asked to stop, and the run resumed."""
    codes = {}
    for name, world, environment in (("one", 1, {}), ("ddp", 2, {}), ("fsdp", 2, FSDP2)):
        codes[name] = ranks(out / name, lambda t: two_stages(t.rank, t.world, size=8), world, **environment)
        towers_out = out / f"towers-{name}"
        codes[f"towers-{name}"] = ranks(towers_out, lambda t: towers(t.rank, t.world, size=8), world, **environment)

    codes["coded"] = ranks(out / "coded", coded, 2)
    codes["coded sharded"] = ranks(out / "coded-sharded", coded, 2, **FSDP2)

    def struck(trainer: Trainer, number: signal.Signals) -> Iterator[Stage]:
        for stage in two_stages(trainer.rank, trainer.world, size=8):
            if trainer.rank == 1:
                stage.loader = DeadlyLoader(size=4, rank=1, world=2)
                stage.loader.number = number
            yield stage

    started = time.monotonic()
    codes["killed"] = ranks(out / "killed", lambda t: struck(t, signal.SIGKILL), 2)
    seconds = time.monotonic() - started
    codes["asked"] = ranks(out / "asked", lambda t: struck(t, signal.SIGTERM), 2)
    for name in ("killed", "asked"):
        codes[f"{name} again"] = ranks(out / name, lambda t: two_stages(t.rank, t.world, size=8), 2)
    return {"codes": codes, "seconds": seconds}


def launched(out: Path) -> dict[str, Any]:
    """The two stages in this process, which a launcher started as one of several."""
    trainer = Trainer(out, device="cpu", precision="fp32")
    trainer.run(two_stages(trainer.rank, trainer.world, size=8))
    return {"processes": trainer.world, "sharded": trainer.sharded}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    scenarios = {"kills": kills, "saves": saves, "together": together, "launched": launched}
    sys.stdout.write(json.dumps(scenarios[sys.argv[1]](folder)) + "\n")
