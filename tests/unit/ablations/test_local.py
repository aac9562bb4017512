"""Tasks in processes of their own: what they send, how they end, and that nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ablations.launch.local import LOG_FILE, Event, LocalExecutor, Outbox, Slot, Task, make_slots
from megasr.errors import MegaSRError, UsageError

SLOTS = [Slot("a", 1, {"MEGASR_SLOT": "a"}), Slot("b", 1, {"MEGASR_SLOT": "b"})]


def _task(folder: Path, name: str, work: Callable[[Outbox], None]) -> Task:
    return Task(name, work, folder / name)


def _events(tasks: list[Task], slots: list[Slot] = SLOTS, retries: int = 1) -> list[Event]:
    return list(LocalExecutor(slots, retries).run(tasks))


def _kinds(events: list[Event], task: str) -> list[str]:
    return [event.kind for event in events if event.task == task]


def test_what_a_task_sends_arrives_in_order_and_what_it_prints_is_kept(tmp_path: Path) -> None:
    def work(send: Outbox) -> None:
        print("hello")
        os.system("echo from a child")
        for step in range(3):
            send("step", step=step, slot=os.environ["MEGASR_SLOT"])

    events = _events([_task(tmp_path, "one", work)])
    assert _kinds(events, "one") == ["started", "step", "step", "step", "finished"]
    assert [event.details["step"] for event in events[1:4]] == [0, 1, 2]
    assert events[1].details["slot"] == events[0].details["slot"] == "a"
    assert (tmp_path / "one" / LOG_FILE).read_text() == "hello\nfrom a child\n"
    assert "MEGASR_SLOT" not in os.environ


def test_as_many_at_a_time_as_there_are_slots(tmp_path: Path) -> None:
    tasks = [_task(tmp_path, f"{n}", lambda send: time.sleep(0.2)) for n in range(4)]
    running = most = 0
    for event in LocalExecutor(SLOTS).run(tasks):
        running += {"started": 1, "finished": -1}.get(event.kind, 0)
        most = max(most, running)
    assert (most, running) == (2, 0)


def test_one_that_dies_is_started_again_and_harms_no_other(tmp_path: Path) -> None:
    def dies_once(send: Outbox) -> None:
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        send("step", step=1)

    def dies(send: Outbox) -> None:
        os._exit(3)

    def breaks(send: Outbox) -> None:
        raise ZeroDivisionError("1 / 0")

    works = {"once": dies_once, "always": dies, "bug": breaks, "well": lambda send: time.sleep(0.1)}
    events = _events([_task(tmp_path, name, work) for name, work in works.items()])
    assert _kinds(events, "once") == ["started", "crashed", "started", "step", "finished"]
    assert _kinds(events, "always") == _kinds(events, "bug") == ["started", "crashed"] * 2 + ["failed"]
    assert _kinds(events, "well") == ["started", "finished"]
    reasons = {event.task: str(event.details["error"]) for event in events if event.kind == "failed"}
    assert reasons["always"] == f"ended with exit code 3; see {tmp_path / 'always' / LOG_FILE}"
    assert reasons["bug"] == f"ZeroDivisionError: 1 / 0; see {tmp_path / 'bug' / LOG_FILE}"
    (killed,) = [e.details["reason"] for e in events if e.task == "once" and e.kind == "crashed"]
    assert killed == "killed by signal 9 (out of memory?)"
    assert (tmp_path / "bug" / LOG_FILE).read_text().count("Traceback") == 2


@pytest.mark.parametrize("error", [MegaSRError("no weights"), UsageError("width must be even")])
def test_an_error_that_says_what_is_wrong_is_not_tried_again(tmp_path: Path, error: Exception) -> None:
    def fails(send: Outbox) -> None:
        raise error

    events = _events([_task(tmp_path, "one", fails)])
    assert [event.kind for event in events] == ["started", "failed"]
    assert type(events[1].details["error"]) is type(error) and str(events[1].details["error"]) == str(error)


def test_tasks_may_save_when_the_caller_stops_listening(tmp_path: Path) -> None:
    def saves(send: Outbox) -> None:
        try:
            send("step", step=1)
            time.sleep(60)
        finally:
            (tmp_path / "saved").touch()

    started = time.monotonic()
    for event in LocalExecutor(SLOTS).run([_task(tmp_path, "one", saves)]):
        if event.kind == "step":
            break
    assert (tmp_path / "saved").exists() and time.monotonic() - started < 20


def test_tasks_may_save_in_the_background_of_a_script(tmp_path: Path) -> None:
    """There SIGINT is ignored, by all that is started."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        test_tasks_may_save_when_the_caller_stops_listening(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_tasks_die_with_a_driver_that_is_killed(tmp_path: Path, root: Path) -> None:
    script = f"""
import os, sys, time
from pathlib import Path
from ablations.launch.local import LocalExecutor, Slot, Task
def work(send):
    Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
    time.sleep(120)
for event in LocalExecutor([Slot("a", 1)]).run([Task("one", work, Path({str(tmp_path)!r}))]):
    pass
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 20
    while _lives(int(pid.read_text())):
        assert time.monotonic() < deadline, "the task lives on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_slots_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    assert [(slot.name, slot.threads) for slot in make_slots("cpu")] == [(f"cpu{n}", 2) for n in range(4)]
    assert [slot.threads for slot in make_slots("cpu", 1)] == [8]
    assert make_slots("cpu")[0].environment == {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(UsageError, match="--per-device must be 1 or more, got 0"):
        make_slots("cpu", 0)


def test_slots_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    slots = make_slots("0,2", 2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "2", "0", "2"]
    assert len(make_slots()) == 3
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in make_slots(devices_per_slot=2)] == ["0,1"]
    with pytest.raises(UsageError, match=r"trainer\.devices is 4"):
        make_slots(devices_per_slot=4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in make_slots("1")] == ["6"]
    for devices, message in (("3", "GPU 3 is not free"), ("0,0", "numbers of GPUs"), ("gpu", "numbers of GPUs")):
        with pytest.raises(UsageError, match=message):
            make_slots(devices)
