"""etcd's files about membership changes, to the letter: the configuration and everybody's progress after each."""

from dataclasses import dataclass, field

import pytest

from logd.raft.configuration import InvalidChange, describe, enter_joint, leave_joint, reconcile_progress, simple
from logd.raft.progress import Inflights, Progress
from logd.raft.types import Configuration
from tests.raft.datadriven import Case, UnknownDirective, run_script
from tests.raft.etcd.changes import describe_progress, steps_of
from tests.raft.etcd.files import CONFIGURATION_FILES, Directories


@pytest.mark.parametrize("name", CONFIGURATION_FILES)
def test_the_files_are_met_to_the_letter(directories: Directories, name: str) -> None:
    assert run_script(directories.configuration / name, Group().answer) > 0


@dataclass(slots=True)
class Group:
    """A configuration with its progress, and a log that grows by one entry per case."""

    configuration: Configuration = field(default_factory=Configuration)
    progress: dict[str, Progress] = field(default_factory=dict)
    last_index: int = -1

    def answer(self, case: Case) -> str:
        self.last_index += 1
        try:
            self.configuration = self.changed(case)
        except InvalidChange as refusal:
            return f"{refusal}\n"
        self.progress = reconcile_progress(self.progress, self.configuration, self.last_index, self.new_progress)
        lines = [describe(self.configuration)]
        lines.extend(f"{node}: {describe_progress(progress)}" for node, progress in self.progress.items())
        return "".join(f"{line}\n" for line in lines)

    def changed(self, case: Case) -> Configuration:
        steps = steps_of(case.input)
        assert not case.positional
        assert case.keys <= ({"autoleave"} if case.directive == "enter-joint" else set())
        match case.directive:
            case "simple":
                return simple(self.configuration, steps)
            case "enter-joint":
                auto_leave = {"true": True, "false": False}[case.value("autoleave", "false")]
                return enter_joint(self.configuration, steps, auto_leave=auto_leave)
            case "leave-joint":
                assert not steps
                return leave_joint(self.configuration)
            case _:
                raise UnknownDirective(case)

    def new_progress(self, next_index: int) -> Progress:
        # etcd 3.4 begins with 0 if the log is empty, where its later versions and logd keep the next index above the
        # match: only there the files' expectation is put in the place of what logd does.
        assert next_index == max(self.last_index, 1)
        return Progress(Inflights(10), next_index=self.last_index)
