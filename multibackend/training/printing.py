"""A run in words: what is trained, how, and where it stands."""

from __future__ import annotations

from multibackend.core.text import Block, Line, Table
from multibackend.training.run import Run
from multibackend.training.settings import settings_of

__all__ = ["run_blocks", "run_sentence"]


def run_sentence(run: Run) -> str:
    """Say in one line what is trained, where, and how far it is."""
    experiment = run.plan.experiment
    place = f"{run.device}, {run.program.execution.mode}, {experiment.precision}"
    run.results.read_all()
    sentence = f"{experiment.name} on {run.plan.backend.name} ({place}), at update {run.state.update}"
    if len(run.state.history):
        sentence += f", last loss {run.state.history[-1].loss:.4f}"
    return sentence


def run_blocks(run: Run) -> list[Block]:
    """Say the same, then every setting, and where the run is saved."""
    settings = {**settings_of(run.plan.experiment, [run.plan.backend.name]), "start": run.plan.initial}
    arrays = len(run.program.info.parameter_names)
    rows = [("parameters", f"{arrays} arrays"), *settings.items()]
    if run.saver is not None:
        rows.append(("saved in", str(run.saver.run_dir)))
    return [Line(run_sentence(run)), Table(("", ""), rows)]
