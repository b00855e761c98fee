"""`tessera act`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli.options import option
from tessera.cli.printing import number, print_json, print_table
from tessera.cli.using import load_able
from tessera.errors import UserError
from tessera.files import atomic_file

if TYPE_CHECKING:
    import numpy as np

FPS = 10  # of a film, where the environment does not tell


@dataclass
class Act:
    """Let a policy act in a Gymnasium environment: how often it reaches its goal, with the exact 95 % interval, and a
    film or a sheet of it."""

    model: Path = option("folder of a policy, as `tessera train gr-1` writes it")
    env: str = option("the environment's id, as gym_pusht/PushT-v0", "tessera/Tabletop-v0")
    goal: str = option("what the policy is told where the environment sets no goal in words", "")
    task: str | None = option("the one task that is tried, where the environment has several, as lift", None)
    episodes: int = option("tries", 10, least=1)
    steps: int | None = option("longest try (default: the environment's own)", None, least=1)
    seed: int = option("of the first try; the others have the next numbers", 0, least=0)
    out: Path | None = option("write a film of all tries there, such as video.mp4", None, file=True)
    sheet: Path | None = option("write pictures of all tries there, a row each, such as sheet.png", None, file=True)
    foresee: bool = option("beside each picture of film or sheet, what the policy expects to see", False)
    json: bool = option("print JSON", False)

    def run(self) -> None:
        from tessera.evaluate.environments import open_env
        from tessera.evaluate.rollout import reported, rollout

        film = self.out is not None or self.sheet is not None
        if self.foresee and not film:
            raise UserError("what is foreseen is shown in the film; give --out video.mp4, or --sheet sheet.png")
        env = open_env(self.env)
        actor = load_able(self.model, "act")
        tried, films = [], list[list[Any]]()
        for seed in range(self.seed, self.seed + self.episodes):
            foreseen: list[Any] = []
            policy = _watched(actor, env, foreseen) if self.foresee else actor.within(env)
            window = actor.policy.config.window
            one = rollout(
                env, policy, seed=seed, window=window, steps=self.steps, goal=self.goal, film=film, task=self.task,
            )  # fmt: skip
            tried.append(one)
            films.append(_beside(one.frames, foreseen) if foreseen else one.frames)
        report = reported(tried)
        if self.out is not None:
            from tessera.data.videos import write_video

            write_video(self.out, list(chain.from_iterable(films)), env.metadata.get("render_fps", FPS))
        if self.sheet is not None:
            from tessera.evaluate.drawing import film_row, sheet

            with atomic_file(self.sheet) as aside:
                sheet([picture for one in films for picture in film_row(one)]).save(aside, format="PNG")
        if self.json:
            said = {"env": self.env, "model": str(self.model), "episodes": self.episodes, "seed": self.seed}
            print_json({**said, **report.to_json(), "film": None if self.out is None else str(self.out)})
            return
        rows = [("all", report.success), *report.tasks.items()]
        cells = [(name, f"{one.value:.1%}", f"[{one.low:.1%}, {one.high:.1%}]", number(one.n)) for name, one in rows]
        print_table(cells, ("task", "success", "95 % interval", "tries"))
        if self.out is not None:
            print(f"film: {self.out}")


def _watched(actor: Any, env: Any, foreseen: list[np.ndarray]) -> Callable[[Mapping[str, Any], str], Any]:
    """The actor as a policy that also notes what its first camera is expected to see."""
    act = actor.within(env)

    def policy(observed: Mapping[str, Any], goal: str) -> Any:
        foreseen.append(actor.foresee(actor.named(observed), goal)[0])
        return act(observed, goal)

    return policy


def _beside(frames: list[np.ndarray], foreseen: list[np.ndarray]) -> list[np.ndarray]:
    """Each frame with what was foreseen at that step to its right; the last, at which nothing was decided, with what
    was foreseen before."""
    import numpy as np
    from PIL import Image

    side = frames[0].shape[0]
    pictures = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.NEAREST)) for one in foreseen]
    return [np.concatenate(both, axis=1) for both in zip(frames, [*pictures, pictures[-1]], strict=True)]
