"""Every registered method on every kind of task it supports, as cases of the conformance suite.

A new method needs no edit here. A new kind of task needs a toy world in ``tests/conftest.py`` and
its name in ``WORLDS``.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, MethodInfo, apply, methods

WORLDS = {
    "classifier": "digits_world",
    "causal_lm": "questions_world",
    "regressor": "heights_world",
}
# Settings without which a method refuses worlds as small as these.
NEEDED = {"o3": {"gate": {"allow_tiny": True}}}
EXCLUSIONS = pytest.StashKey[dict]()


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on a small part of one toy world.

    Attributes:
        info: The method.
        world: The toy world.
        forget: Ten or fewer records to forget.
        retain: Records to keep.
    """

    info: MethodInfo[Any]
    world: Any
    forget: Any
    retain: Any

    @property
    def needs(self):
        return self.info.needs(self.info.config())

    @property
    def start(self):
        """The model whose weights the method's work starts from."""
        exact = self.info.guarantee == "exact"
        return self.world.fresh() if exact else self.world.model

    def given(self, **changes):
        whole = Given(self.world.task, self.forget, self.retain, fresh=self.world.fresh)
        return dataclasses.replace(whole, **changes)

    @property
    def composite(self):
        """Whether the method keeps the weights and changes the output only."""
        return self.info.evidence == "output-suppressed"

    def original(self, result):
        """What became of the input: the result, or the target in it."""
        return result.model.target if self.composite else result.model

    def settings(self, **schedule):
        """Two quick epochs, for methods that run the loop."""
        if not scheduled(self.info):
            return {}
        own = NEEDED.get(self.info.name, {})
        return {**own, "schedule": {"epochs": 2, "batch_size": 4, "lr": 1e-3, **schedule}}

    def apply(self, run=None, *, model=None, given=None, settings=None):
        return apply(
            self.info.name,
            model or self.world.model,
            given or self.given(),
            run or Run(),
            self.settings() if settings is None else settings,
        )

    def digest(self, *args, **kwargs):
        return state_digest(self.apply(*args, **kwargs).model)


def scheduled(info):
    """Whether a method runs the loop: its settings have a schedule."""
    return "schedule" in {field.name for field in dataclasses.fields(info.config)}


def cases():
    """Name every (method, kind of task) pair."""
    return [(info.name, kind) for info in methods for kind in sorted(info.kinds)]


def pytest_generate_tests(metafunc):
    pairs = cases()
    if "looped_case" in metafunc.fixturenames:
        pairs = [pair for pair in pairs if scheduled(methods.get(pair[0]))]
    if "composite_case" in metafunc.fixturenames:
        kept = "output-suppressed"
        pairs = [pair for pair in pairs if methods.get(pair[0]).evidence == kept]
    names = ["-".join(pair) for pair in pairs]
    for fixture in ("case", "looped_case", "composite_case"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, pairs, ids=names, indirect=True)
    if "info" in metafunc.fixturenames:
        metafunc.parametrize("info", list(methods), ids=methods.names())


def _case(request):
    name, kind = request.param
    check = request.node.originalname.removeprefix("test_")
    reason = request.module.EXCLUDED.get((name, check))
    if reason is not None:
        pytest.skip(reason)
    world = request.getfixturevalue(WORLDS[kind])
    forget, retain = world.forget, world.retain
    return Case(
        methods.get(name),
        world,
        forget.take(range(min(10, len(forget)))),
        retain.take(range(min(18, len(retain)))),
    )


@pytest.fixture
def case(request):
    return _case(request)


@pytest.fixture
def looped_case(request):
    return _case(request)


@pytest.fixture
def composite_case(request):
    return _case(request)


@pytest.fixture(scope="session")
def killed():
    """Digests of every method, undisturbed and killed with SIGKILL and resumed."""
    program = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pytest_collection_modifyitems(config, items):
    tables = {item.module.__name__: getattr(item.module, "EXCLUDED", None) for item in items}
    config.stash[EXCLUSIONS] = {name: t for name, t in tables.items() if t is not None}


def pytest_terminal_summary(terminalreporter, config):
    for name, table in config.stash.get(EXCLUSIONS, {}).items():
        suite = name.rpartition(".")[2]
        terminalreporter.write_line(f"conformance ({suite}): {len(table)} exclusions")
        for (part, check), reason in sorted(table.items()):
            terminalreporter.write_line(f"  {part} x {check}: {reason}")
