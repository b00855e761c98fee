"""The training loop: stages one after the other, step by step; killed at any moment, it can be resumed.

    trainer = Trainer("runs/a", seed=1)
    trainer.run([Stage(name="align", model=model, objective=caption_loss, loader=loader, steps=500)])

Several processes: `accelerate launch --multi_gpu --num_processes 2 ...`, on CPU too (`--cpu` would start one
process), with `--use_fsdp --fsdp_version 2` for sharded weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.errors import CheckpointError, TesseraError, TrainingStopped, UserError
from tessera.train import checkpoint, faults, memory, parallel, select, state
from tessera.train.log import MetricsLog, Reporter
from tessera.train.optim import Average
from tessera.train.stage import Callback, Event, Loader, Objective, Stage, Terms, fingerprint
from tessera.train.step import Outcome, StepModule, gradients, norm_of_gradient, update

__all__ = ["Callback", "Event", "Loader", "Objective", "Stage", "Terms", "Trainer"]

LONG = 100  # steps of a stage from which on it pays to look through all objects once, and never again


@dataclass
class _Running:
    """A stage in training. `model` is the stage's own, or under FSDP2 a sharded copy; `module` is what is
    called."""

    stage: Stage
    position: int
    offset: int  # steps of the stages before
    settings: dict[str, Any]
    frozen: str
    model: nn.Module
    module: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: Average | None
    done: int = 0

    @property
    def step(self) -> int:
        """Steps of the whole run that are done."""
        return self.offset + self.done


class Trainer:
    """Runs stages; writes checkpoints, final weights of stages and logs into `out`.

    Args:
        config: whatever else shapes the run (model size, data options); compared field by field on resume.
        precision: "auto" (bf16 where the hardware multiplies it fast), "bf16" (autocast) or "fp32".
        device: "auto", "cpu" or "cuda".
        resume: go on from the newest whole checkpoint in `out`; without one, start.
        allow_other_data: resume on data with another fingerprint, from their start.
        save_every: steps between checkpoints; 0 for none but at a signal.
        keep: newest checkpoints to keep.
        log_every: steps between lines of metrics.jsonl.
        tensorboard: write metrics there as well.
    """

    def __init__(
        self, out: str | Path, *, config: Mapping[str, Any] | None = None, seed: int = 0,
        precision: str = "auto", device: str = "auto", resume: bool = False, allow_other_data: bool = False,
        save_every: int = 200, keep: int = 2, log_every: int = 1, callbacks: Sequence[Callback] = (),
        tensorboard: bool = False,
    ):  # fmt: skip
        self.accelerator = parallel.open_accelerator(device)
        self.sharded = parallel.is_sharded(self.accelerator)
        self.precision = select.choose_precision(precision, self.accelerator.device)
        self.out, self.seed, self.resume, self.allow_other_data = Path(out), seed, resume, allow_other_data
        self.save_every, self.log_every = save_every, log_every
        self.callbacks, self.tensorboard = callbacks, tensorboard
        self.config = {"run": dict(config or {}), "seed": seed, "precision": self.precision}
        self.main = self.accelerator.is_main_process
        self.reporter = Reporter(self.main)
        self.store = checkpoint.Store(self.out, keep, self.reporter.note)
        self.signals = faults.Signals()

    @property
    def rank(self) -> int:
        """Number of this process; loaders slice by it."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes

    def run(self, stages: Iterable[Stage], total_steps: int = 0) -> None:
        """Train `stages` in order; their models hold the final weights at the end.

        A generator of stages works: each is asked for after the one before has ended (or its weights were
        loaded). Random generators are seeded from (seed, stage) before a stage is asked for, so that all processes
        make the same weights, and from (seed, stage, process) when it starts.

        Args:
            total_steps: steps of all stages, for the time left; known by itself where `stages` is a sequence.

        Raises:
            UserError: `out` holds a run and `resume` is off.
            CheckpointError: a checkpoint of other settings, data or weights.
            TrainingStopped: a loss that is not finite, a batch without targets, no memory, a signal
                (`Interrupted`).
        """
        if not total_steps and isinstance(stages, Sequence):
            total_steps = sum(stage.steps for stage in stages)
        latest, offset = self._open(), 0
        log = MetricsLog(self.out, self.store.last_step(latest), self.tensorboard) if self.main else None
        try:
            state.seed_generators(self.seed, 0, 0)
            for position, stage in enumerate(stages):
                with memory.kept():  # of steps alone: what the making of a stage takes goes back
                    self._run_stage(stage, position, offset, latest, log, total_steps)
                offset += stage.steps
                state.seed_generators(self.seed, position + 1, 0)
        finally:
            self.reporter.stop()
            if log is not None:
                log.close()

    def _open(self) -> checkpoint.Checkpoint | None:
        """Refuse a folder that is taken, clear what a killed run left, and find where to go on."""
        note = parallel.launch_note()
        if note:
            self.reporter.note(note)
        if not self.resume and not self.store.is_empty():
            raise UserError(f"{self.out} holds a run already; go on with --resume, or choose another --out")
        if self.main:
            self.store.tidy()
        self.accelerator.wait_for_everyone()
        return self.store.latest() if self.resume else None

    def _seed(self, position: int) -> None:
        state.seed_generators(self.seed, position, self.rank)

    def _run_stage(
        self, stage: Stage, position: int, offset: int, latest: checkpoint.Checkpoint | None,
        log: MetricsLog | None, total_steps: int,
    ) -> None:  # fmt: skip
        trained, kept = select.set_trainable(stage.model, stage.trainable)
        settings = self.config | {"stage": stage.settings()}
        frozen = state.frozen_fingerprint(stage.model)
        finished = self.store.finished(position, stage.name)
        mine = latest if latest and latest.state["stage"]["position"] == position else None
        if finished:
            self._check(finished, settings, frozen)
            checkpoint.compare_fingerprint(
                finished.state["fingerprint"], fingerprint(stage.loader), finished.path, self.allow_other_data
            )
            state.load_weights(stage.model, finished.tensors("weights"), str(finished.path))
            self.reporter.note(f"stage {stage.name}: was finished before, its final weights are loaded")
            return
        if latest and latest.state["stage"]["position"] > position:
            raise CheckpointError(f"{latest.path} is of a later stage, but stage {stage.name!r} has no final weights")
        self.reporter.note(
            f"stage {stage.name}: {trained:,} values are trained, {kept:,} are frozen; {stage.steps} steps,"
            f" {self.precision} on {self.accelerator.device.type}, {self._group()}"
        )
        if mine:
            self._check(mine, settings, frozen)
            state.load_weights(stage.model, mine.tensors("weights"), str(mine.path))
        running = self._prepare(stage, position, offset, settings, frozen)
        self._seed(position)
        if mine:
            self._restore(running, mine)
        with memory.unwatched() if stage.steps >= LONG else nullcontext():
            self._loop(running, log, max(total_steps, offset + stage.steps))
        self._finish(running)

    def _group(self) -> str:
        kind = "FSDP2" if self.sharded else "DDP"
        return "1 process" if self.world == 1 else f"{self.world} processes ({kind})"

    def _check(self, saved: checkpoint.Checkpoint, settings: dict[str, Any], frozen: str) -> None:
        checkpoint.compare_config(saved.state["config"], settings, saved.path)
        if saved.state["frozen"] != frozen:
            raise CheckpointError(
                f"{saved.path} was trained beside other frozen weights (fingerprint {saved.state['frozen']},"
                f" now {frozen}); load the parts that it was started with"
            )

    def _prepare(self, stage: Stage, position: int, offset: int, settings: dict[str, Any], frozen: str) -> _Running:
        """Wrap model, objective and optimisers for the process group."""
        select.checkpoint_activations(stage.model, stage.activation_checkpointing)
        model, objective = stage.model, stage.objective
        if self.sharded:  # in place and for good: a copy is sharded, the stage's model takes the result
            model, objective = copy.deepcopy((model, objective))
        step = StepModule(model, objective, self.precision == "bf16", touch=self.sharded)
        module = parallel.wrap(self.accelerator, step)
        half = self.precision == "bf16" and select.has_fast_bf16(self.accelerator.device)
        optimisers = stage.optimiser.build(model, half)
        average = Average(model, stage.average) if stage.average is not None else None
        return _Running(stage, position, offset, settings, frozen, model, module, optimisers, average)

    def _restore(self, running: _Running, saved: checkpoint.Checkpoint) -> None:
        """Bring optimisers, average, loader, generators and position to where `saved` left them."""
        if running.average is not None:
            running.average.load(saved.tensors("average"))
        state.load_optimiser(running.optimisers, running.model, saved.tensors("optimiser"))
        loader, found = running.stage.loader, saved.state
        same = checkpoint.compare_fingerprint(
            found["fingerprint"], fingerprint(loader), saved.path, self.allow_other_data
        )
        if same:
            loader.load_state_dict(found["loader"][self.rank if found["world"] == self.world else 0])
        prefix = f"{self.rank}|"
        words = saved.tensors("generators")
        own = {name.removeprefix(prefix): words[name] for name in words if name.startswith(prefix)}
        if own:
            state.set_generators(own)
        running.done = found["stage"]["done"]
        for key, now in self._environment().items():
            if found["environment"].get(key) != now:
                was = found["environment"].get(key)
                self.reporter.note(f"{key} was {was} and is {now}: losses will be close, not equal bit for bit")
        self.reporter.note(f"resumed from {saved.path}: step {running.step}")

    def _environment(self) -> dict[str, Any]:
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        threads = torch.get_num_threads()
        return {"processes": self.world, "threads": threads, "torch": torch.__version__, "device": name}

    def _loop(self, running: _Running, log: MetricsLog | None, total_steps: int) -> None:
        stage, data = running.stage, iter(running.stage.loader)
        self.reporter.start(stage.name, running.done, stage.steps)
        with self.signals as signals:
            while running.done < stage.steps:
                started = time.perf_counter()
                batches = self._batches(running, data)
                waited = time.perf_counter() - started
                outcome, norm = self._step(running, batches, signals.number)
                seconds = time.perf_counter() - started
                timing = {"seconds": seconds, "waited": waited, "samples": len(faults.sample_ids(batches))}
                self._log(running, log, outcome, norm, timing)
                left = total_steps - running.step
                self.reporter.step(stage.name, running.done, stage.steps, left, outcome.loss, seconds)
                self._call_back(running)
                interrupt = outcome.interrupt or (signals.number if self.world == 1 else 0)
                due = self.save_every and running.step % self.save_every == 0 and running.done < stage.steps
                if due or interrupt:
                    self._save(running, log)
                if interrupt:
                    raise faults.Interrupted(interrupt, f"step {running.step}")
        if log is not None:
            log.sync()
        self.reporter.stop()

    def _batches(self, running: _Running, data: Iterator[Any]) -> list[Any]:
        try:
            return [select.to_device(next(data), self.accelerator.device) for _ in range(running.stage.accumulate)]
        except StopIteration:
            raise TrainingStopped(
                f"the loader of stage {running.stage.name!r} gave no batch for step {running.step + 1};"
                " a loader goes on epoch after epoch"
            ) from None

    def _step(self, running: _Running, batches: list[Any], received: int) -> tuple[Outcome, float]:
        """One update: gradients, checks, clipping, optimisers. Returns its outcome and the gradient's
        norm."""
        stage = running.stage
        try:
            outcome = gradients(self.accelerator, running.module, stage, batches, received)
            whole = norm_of_gradient(running.model)
            norm = float(whole)
            self._check_step(running, batches, outcome, norm)
            update(
                running.model,
                running.optimisers,
                stage.optimiser,
                stage.optimiser.rate(running.done, stage.steps),
                whole,
            )
        except (RuntimeError, MemoryError) as error:
            known = faults.out_of_memory(error, batches[0], stage.accumulate) or parallel.lost_process(error)
            if known is None:
                raise
            raise known from error
        if running.average is not None:
            running.average.update(running.model)
        running.done += 1
        return outcome, norm

    def _check_step(self, running: _Running, batches: list[Any], outcome: Outcome, norm: float) -> None:
        """Stop before the update where a batch has no target or a number is none. All processes come to the
        same end."""
        where = f"stage {running.stage.name!r}, step {running.step + 1}"
        if outcome.empty:
            ids = faults.sample_ids(batch for batch in batches if outcome.empty)
            everyone = [one for found in parallel.together(self.accelerator, ids) for one in found]
            raise TrainingStopped(
                f"{where}: {outcome.empty} batch(es) without a single training target"
                f" ({faults.name_ids(everyone)}); targets are the positions of segments with learned=True:"
                " check which segments these samples mark so"
            )
        if math.isfinite(outcome.loss) and math.isfinite(norm):
            return
        bad = outcome.bad_batches() or list(range(len(batches)))
        place = faults.first_bad_module(running.model, lambda: [running.module(batch) for batch in batches])
        own = (bool(outcome.bad_batches()), self.rank, faults.sample_ids(batches[i] for i in bad), place)
        _, rank, ids, place = max(parallel.together(self.accelerator, own), key=lambda found: (found[0], -found[1]))
        raise TrainingStopped(
            f"{where}: loss {outcome.loss}, gradient norm {norm} ({faults.name_ids(ids)}, process {rank});"
            f" {place}; the weights were not updated, the last checkpoint is whole"
        )

    def _log(self, running: _Running, log: MetricsLog | None, outcome: Outcome, norm: float, timing: dict) -> None:
        if log is None or running.step % self.log_every:
            return
        place = {"step": running.step, "stage": running.stage.name}
        lr = running.optimisers[0].param_groups[0]["lr"]
        values = {"loss": outcome.loss, **outcome.losses, "lr": lr, "gradient_norm": norm}
        log.write(place | values, place | timing)

    def _call_back(self, running: _Running) -> None:
        due = [one for one in self.callbacks if running.step % one.every == 0]
        if not due or not self.main or self.sharded:
            return
        generators = state.generators()
        running.model.eval()
        with torch.no_grad():
            for callback in due:
                callback.function(Event(running.stage, running.step, running.model, self.reporter.note))
        select.set_modes(running.model)
        state.set_generators(generators)

    def _state(self, running: _Running) -> dict[str, Any]:
        """state.json: all that is not a tensor."""
        stage = running.stage
        return {
            "step": running.step,
            "stage": {"position": running.position, "name": stage.name, "done": running.done},
            "config": running.settings,
            "config_hash": checkpoint.config_hash(running.settings),
            "fingerprint": fingerprint(stage.loader),
            "frozen": running.frozen,
            "world": self.world,
            "environment": self._environment(),
        }

    def _save(self, running: _Running, log: MetricsLog | None) -> None:
        """Write a checkpoint; all processes give their part, the main one writes."""
        weights, left_out = state.weights(running.model)
        tensors = {"weights": weights, "optimiser": state.optimiser(running.optimisers, running.model, self.main)}
        if running.average is not None:
            tensors["average"] = running.average.whole()
        parts = parallel.together(self.accelerator, (state.generators(), running.stage.loader.state_dict()))
        tensors["generators"] = {f"{rank}|{n}": t for rank, (words, _) in enumerate(parts) for n, t in words.items()}
        values = self._state(running) | {"loader": [loader for _, loader in parts], "left_out": left_out}
        if log is not None:
            log.sync()
        self._on_main(lambda: self.store.save(running.step, tensors, values))

    def _finish(self, running: _Running) -> None:
        """Give the stage's model its final weights, and write them."""
        weights, left_out = state.weights(running.model)
        if running.average is not None:
            weights |= running.average.whole()
        stage = running.stage
        state.load_weights(stage.model, weights, f"the result of stage {stage.name}")
        values = self._state(running) | {"left_out": left_out}
        self._on_main(lambda: self.store.finish(running.position, stage.name, weights, values))
        select.checkpoint_activations(stage.model, False)
        stage.model.zero_grad(set_to_none=True)

    def _on_main(self, write: Callable[[], object]) -> None:
        """Let the main process write; where that fails, all stop with its sentence."""
        problem: TesseraError | None = None
        if self.main:
            try:
                write()
            except TesseraError as error:
                problem = error
        said = parallel.together(self.accelerator, str(problem) if problem else "")[0]
        if said:
            raise TrainingStopped(said) from problem
