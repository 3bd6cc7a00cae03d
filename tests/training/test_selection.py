"""Which weights a run keeps as its best."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from polyptych.evaluation_record import Evaluation, TaskResult
from polyptych.interruption import StopFlag
from polyptych.run import Run, with_tasks
from polyptych.training import Trainer

NAN = float("nan")


def with_skills(skills: dict[str, float]) -> Evaluation:
    return Evaluation(tasks={task: TaskResult(headline="x", metrics={"x": 0.0}, skill=skill)
                             for task, skill in skills.items()})


def kept_step(run: Run, folder: Path, skills: list[dict[str, float]], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """The step whose weights are the best, and what was said, where validations find these skills."""
    run = replace(with_tasks(run, ["semseg", "depth"]), select="best", steps=len(skills),
                  monitoring=replace(run.monitoring, validate_every=1))
    trainer, turn = Trainer(run, folder, resume=False), iter(skills)
    trainer.evaluator.evaluate = lambda *_, **__: with_skills(next(turn))  # type: ignore[method-assign]
    trainer.step = lambda _: (  # type: ignore[method-assign]
        setattr(trainer.state, "step", trainer.state.step + 1), ({}, {}))[1]
    trainer._record = lambda *_: None  # type: ignore[method-assign]
    trainer.fit(StopFlag())
    with safe_open(str(folder / "checkpoints" / "best.safetensors"), "pt") as file:
        assert file.keys()
        state = file.metadata()
    return next(step for step in range(len(skills) + 1) if f'"step": {step}' in str(state)), capsys.readouterr().err


@pytest.mark.parametrize(("skills", "kept"), [
    ([{"semseg": 0.1, "depth": NAN}, {"semseg": 0.3, "depth": NAN}, {"semseg": 0.2, "depth": NAN}], 2),
    # The network that is lost in a task is not better for it.
    ([{"semseg": 0.1, "depth": 0.1}, {"semseg": 0.9, "depth": -float("inf")}], 1),
    ([{"semseg": NAN, "depth": NAN}, {"semseg": NAN, "depth": NAN}], 2),
])
def test_a_task_without_a_skill_does_not_lose_the_run(skills, kept, small_run: Run, tmp_path: Path, capsys) -> None:
    step, said = kept_step(small_run, tmp_path / "run", skills, capsys)
    assert step == kept
    assert ("no validation gave any task a finite skill" in said) == all(s != s for s in skills[0].values())


def test_the_known_skill_is_the_mean_over_tasks_that_have_one() -> None:
    assert with_skills({"a": 0.5, "b": NAN, "c": 0.1}).known_skill == (2, pytest.approx(0.3))
    assert math.isnan(with_skills({"b": NAN}).known_skill[1])
