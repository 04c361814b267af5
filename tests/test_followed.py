"""A step of training, a verdict and a picture can each be followed in few files."""

from typing import Any

import torch

from bp_torch.data import Examples
from bp_torch.explain.idea import file_content
from bp_torch.explain.nudges import Nudges
from bp_torch.explain.options import NudgesOptions
from bp_torch.explain.subject import Subject, with_example
from bp_torch.training import Config
from bp_torch.verify import check
from tests.followed import files_run

MATHEMATICS = {"activations.py", "backprop.py", "costs.py", "network.py"}


def test_one_training_step_runs_in_seven_files_and_its_recording_in_one_more(mnist: tuple[Examples, Examples]) -> None:
    def files(**fields: Any) -> set[str]:
        config = Config(**fields)
        network = config.network(torch.device("cpu"))
        step = config.training_step(network, config.optimizer(network), mnist[0])
        with torch.inference_mode():
            return files_run(lambda: list(step.run(torch.arange(100))))

    assert files(replay=False) == MATHEMATICS | {"examples.py", "sgd.py", "training/step.py"}
    assert files() - files(replay=False) == {"recorder.py"}


def test_one_verdict_runs_in_ten_files() -> None:
    scores = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))

    def verdict() -> None:
        report = check(lambda scores: scores.logsumexp(1).mean(), scores, lambda scores: torch.softmax(scores, 1))
        assert str(report).startswith("WRONG")

    files = files_run(verdict)
    assert "verify/check.py" in files and len(files) <= 10, files


def test_one_picture_with_its_table_runs_in_eight_files(subject: Subject) -> None:
    options = NudgesOptions(digit=2)
    opened = with_example(subject, options)

    def show() -> None:
        idea = Nudges(opened, options)
        assert idea.table() and file_content(idea.figure())

    files = files_run(show)
    assert "backprop.py" in files and len(files) <= 8, files
