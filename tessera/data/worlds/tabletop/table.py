"""The table and what can happen on it: a gripper over things, two trays, a slider, and a lamp with its button.

Lengths are shares of the table's side, x to the right, y downwards in the picture; a height z is 0 on the table and
1 where the arm is all the way up. Everything moves in plain steps, without forces, so the same actions give the same
table on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tessera.data.worlds.scenes.graph import COLOURS, HUES, SHAPES

RADIUS = 0.08  # of every thing; collisions take all shapes for discs
FINGER = 0.03  # radius of the gripper where it pushes
STEP, LIFT = 0.06, 0.25  # what an action of 1 moves, sideways and upwards
LEVEL = 0.3  # height of a thing, and so of the place on top of it
REACH = 0.05  # how far off its middle a thing, the knob or the button can still be gripped or pressed
ONTO = 0.06  # how far off the middle of another a thing can be let go and stay on top of it
SLACK = 0.04  # how far a thing between open fingers can lie off their middle
ARM = (0.04, 0.96)  # where the gripper can go, each way
GROUND = ((0.09, 0.91), (0.3, 0.91))  # where the middles of things can be: x, y
RAIL_Y, RAIL = 0.13, (0.32, 0.68)
BUTTON, LAMP = (0.86, 0.13), (0.14, 0.13)
PRESS = 0.2  # the button goes down where the gripper comes below this height
TRAYS = {"left": (0.2, 0.8), "right": (0.8, 0.8)}
TRAY_HALF = 0.16  # half the side of a tray; a thing is in it where its middle is INSIDE or nearer, each way
INSIDE = 0.12


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing at (x, y); `on` is the number of the thing that it lies on, None the table."""

    colour: str
    shape: str
    hue: float
    x: float
    y: float
    on: int | None = None


@dataclass
class Table:
    """The whole state. `held` numbers the thing in the gripper; `knob` says that it grips the slider's knob."""

    things: list[Thing]
    x: float
    y: float
    z: float
    slider: float = 0.0  # 0 left, 1 right
    lamp: bool = False
    opened: bool = True
    held: int | None = None
    knob: bool = False
    tint: tuple[float, float, float] = field(default=(0.84, 0.8, 0.74))

    def copy(self) -> Table:
        """A table that moves on its own."""
        return replace(self, things=list(self.things))

    @property
    def arm(self) -> np.ndarray:
        """Where the gripper is and whether it is open, float32 [4]: x, y, z, and 1 open or -1 closed."""
        return np.array([self.x, self.y, self.z, 1 if self.opened else -1], np.float32)

    @property
    def knob_x(self) -> float:
        """Where the slider's knob stands on its rail."""
        return RAIL[0] + self.slider * (RAIL[1] - RAIL[0])

    def level(self, index: int) -> int:
        """How many things lie under thing `index`."""
        under = self.things[index].on
        return 0 if under is None else 1 + self.level(under)

    def top_of(self, index: int) -> int:
        """The uppermost of the pile that thing `index` is in, itself where nothing lies on it."""
        above = next((n for n, thing in enumerate(self.things) if thing.on == index), None)
        return index if above is None else self.top_of(above)

    def clear(self, index: int) -> bool:
        """Whether nothing lies on thing `index`."""
        return self.top_of(index) == index

    def standing(self) -> list[int]:
        """The things that stand on the table itself."""
        return [n for n, thing in enumerate(self.things) if thing.on is None and n != self.held]

    def gap(self, index: int, x: float, y: float) -> float:
        """How far the middle of thing `index` is from (x, y)."""
        return math.hypot(self.things[index].x - x, self.things[index].y - y)

    def between(self) -> int | None:
        """The thing that stands between the open fingers."""
        if not self.opened:
            return None
        tops = [self.top_of(n) for n in self.standing() if self.z < self._height(n) - 1e-6]
        near = [n for n in tops if self.gap(n, self.x, self.y) <= REACH]
        return min(near, key=lambda n: self.gap(n, self.x, self.y), default=None)

    def act(self, action: Sequence[float] | np.ndarray) -> None:
        """One action of four numbers in [-1, 1]: first sideways by dx and dy, then up or down by dz, then the fingers.

        The fingers are open where the last number is 0 or more. A way that is blocked is not gone.
        """
        dx, dy, dz, grip = (float(value) for value in action)
        dx, dy, dz, opened = STEP * dx, STEP * dy, LIFT * dz, grip >= 0
        if self.knob:
            self.x = min(max(self.x + dx, RAIL[0]), RAIL[1])
            self.slider = (self.x - RAIL[0]) / (RAIL[1] - RAIL[0])
        else:
            self._sideways(dx, dy)
            self._upwards(dz)
        if opened != self.opened:
            self._fingers(opened)

    def _carry(self, index: int, x: float, y: float) -> None:
        """Set thing `index`, and what lies on it, at (x, y)."""
        old = self.things[index]
        self.things[index] = replace(old, x=x, y=y)
        for above, thing in enumerate(self.things):
            if thing.on == index:
                self._carry(above, thing.x + x - old.x, thing.y + y - old.y)

    def _sideways(self, dx: float, dy: float) -> None:
        before, things = (self.x, self.y), list(self.things)
        inside = self.between()
        self.x, self.y = (min(max(value, ARM[0]), ARM[1]) for value in (self.x + dx, self.y + dy))
        if self.held is not None:
            self._carry(self.held, self.x, self.y)
        if inside is not None:
            self._drag(inside)
        if not self._make_room(inside):
            (self.x, self.y), self.things = before, things

    def _drag(self, index: int) -> None:
        """Open fingers take what stands between them along; off the thing below it, it drops."""
        far = self.gap(index, self.x, self.y)
        if far > SLACK:
            thing, share = self.things[index], SLACK / far
            self._carry(index, self.x + (thing.x - self.x) * share, self.y + (thing.y - self.y) * share)
            under = self.things[index].on
            if under is not None and self.gap(under, self.things[index].x, self.things[index].y) > ONTO:
                self._let_go(index)

    def _width(self) -> float:
        return FINGER if self.held is None else RADIUS

    def _height(self, index: int) -> float:
        """The height of the pile on thing `index`."""
        return LEVEL * (self.level(self.top_of(index)) + 1)

    def _touched(self, inside: int | None) -> list[int]:
        """Piles that the gripper, or what it holds, runs into."""
        return [
            n
            for n in self.standing()
            if self.top_of(n) != inside
            and self.z < self._height(n) - 1e-6
            and self.gap(n, self.x, self.y) < RADIUS + self._width() - 1e-6
        ]

    def _make_room(self, inside: int | None) -> bool:
        """Push things out of the gripper's way and of each other's; False where there is no way out."""
        for index in self._touched(inside):
            self._push_off(index, self.x, self.y, RADIUS + self._width())
        return self._part((self.x, self.y)) and not self._touched(inside)

    def _push_off(self, index: int, x: float, y: float, distance: float) -> None:
        """Move thing `index` straight away from (x, y) to `distance`, as far as the ground goes."""
        far = self.gap(index, x, y)
        thing = self.things[index]
        ux, uy = ((thing.x - x) / far, (thing.y - y) / far) if far > 1e-9 else (1.0, 0.0)
        self._carry(index, *on_ground(x + ux * distance, y + uy * distance))

    def _part(self, centre: tuple[float, float]) -> bool:
        """Move things that overlap apart, the one further from `centre` each time; False where some still do."""
        for _ in range(24):
            still = True
            for one in self.standing():
                for other in self.standing():
                    a, b = self.things[one], self.things[other]
                    if one < other and math.hypot(a.x - b.x, a.y - b.y) < 2 * RADIUS - 1e-6:
                        near, far = sorted((one, other), key=lambda n: self.gap(n, *centre))
                        self._push_off(far, self.things[near].x, self.things[near].y, 2 * RADIUS)
                        still = False
            if still:
                return True
        return False

    def _upwards(self, dz: float) -> None:
        before = self.z
        self.z = min(max(self.z + dz, self._floor()), 1.0)
        pressed = before >= PRESS > self.z and math.hypot(self.x - BUTTON[0], self.y - BUTTON[1]) <= REACH
        if pressed and not self.opened:
            self.lamp = not self.lamp

    def _floor(self) -> float:
        """How low the gripper can go where it is: onto a pile, or with open fingers around its uppermost thing."""
        floor = 0.0
        for index in self.standing():
            distance = self.gap(self.top_of(index), self.x, self.y)
            if distance < RADIUS + self._width() - 1e-6:
                around = self.opened and self.held is None and distance <= REACH
                floor = max(floor, self._height(index) - (LEVEL if around else 0))
        return min(floor, self.z)  # what it already stands beside does not lift it

    def _fingers(self, opened: bool) -> None:
        if opened:
            self.opened, self.knob = True, False
            if self.held is not None:
                dropped, self.held = self.held, None
                self._let_go(dropped)
            return
        inside = self.between()
        self.opened = False
        if inside is not None:
            self.things[inside] = replace(self.things[inside], on=None)
            self.held = inside
            self._carry(inside, self.x, self.y)
        elif self.z < LEVEL and math.hypot(self.x - self.knob_x, self.y - RAIL_Y) <= REACH:
            self.knob, self.x, self.y = True, self.knob_x, RAIL_Y

    def _let_go(self, index: int) -> None:
        """Thing `index` comes to rest on what is under it, else on the table, where others make room."""
        thing = self.things[index] = replace(self.things[index], on=None)
        below = [self.top_of(n) for n in self.standing() if n != index]
        under = min(below, key=lambda n: self.gap(n, thing.x, thing.y), default=None)
        if under is not None and self.gap(under, thing.x, thing.y) <= ONTO:
            self.things[index] = replace(thing, on=under)
            return
        self._carry(index, *on_ground(thing.x, thing.y))
        self._part((self.things[index].x, self.things[index].y))


def on_ground(x: float, y: float) -> tuple[float, float]:
    """The nearest point where the middle of a thing can be."""
    (x0, x1), (y0, y1) = GROUND
    return min(max(x, x0), x1), min(max(y, y0), y1)


def in_tray(thing: Thing, side: str) -> bool:
    """Whether the middle of `thing` is well within a tray."""
    x, y = TRAYS[side]
    return max(abs(thing.x - x), abs(thing.y - y)) <= INSIDE


def random_table(rng: np.random.Generator, things: int = 3) -> Table:
    """Things of different colours anywhere on the table, not touching, under an open gripper somewhere above."""
    (x0, x1), (y0, y1) = GROUND
    places: list[tuple[float, float]] = []
    while len(places) < things:
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        if all(math.hypot(x - px, y - py) > 2 * RADIUS + 0.03 for px, py in places):
            places.append((x, y))
    colours = rng.permutation(len(COLOURS))[:things]
    made = [
        Thing(COLOURS[c], SHAPES[int(rng.integers(len(SHAPES)))], HUES[COLOURS[c]] + rng.uniform(-4, 4), x, y)
        for c, (x, y) in zip(colours, places, strict=True)
    ]
    light = rng.uniform(0.76, 0.9)
    return Table(
        made,
        x=rng.uniform(0.2, 0.8),
        y=rng.uniform(0.25, 0.8),
        z=rng.uniform(0.8, 1.0),
        slider=float(rng.integers(2)),
        lamp=bool(rng.integers(2)),
        tint=(light, light - rng.uniform(0.02, 0.06), light - rng.uniform(0.06, 0.14)),
    )
