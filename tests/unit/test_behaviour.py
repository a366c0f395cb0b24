"""Two drivers compared by what they do to their device: what is told, and what is noise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from click.testing import CliRunner

from nicmodel.cli.main import cli
from nicmodel.client.behaviour import Run, Watcher, differences, loaded, log_lines, saved, told

#: When the parts of a try end.
PARTS = [("load", 100), ("up", 200), ("command", 300), ("remove", 400)]


def admin(time: int, command: str, queue: str = "", status: str = "PASSED", **fields: Any) -> dict[str, Any]:
    return {"time": time, "kind": "admin", "command": command, "status": status, "queue": queue, "fields": fields}


def doorbell(time: int, queue: str, tail: int) -> dict[str, Any]:
    return {"time": time, "kind": "doorbell", "queue": queue, "tail": tail}


def received(time: int, count: int, verdict: str = "delivered", header: int = 0) -> list[dict[str, Any]]:
    return [{"time": time, "kind": "rx", "queue": "rx0", "verdict": verdict, "header": header}] * count


def interrupts(time: int, count: int) -> list[dict[str, Any]]:
    return [{"time": time, "kind": "interrupt", "queue": "rx0", "vector": 1}] * count


#: What a driver does, as far as it matters here.
PROBE = [
    {"time": 10, "kind": "register", "access": "read", "register": "device_status", "value": 0},
    {"time": 11, "kind": "register", "access": "write", "register": "driver_status", "value": 1, "flags": ["run"]},
    admin(20, "DESCRIBE", address=0x1234_5000, length=4096),
    admin(30, "CONFIGURE", num_blocks=8),
]
QUEUES = [admin(110 + number, "CREATE_RX", f"rx{number}", ring=1 << 30, entries=1024) for number in range(4)]
POSTED = [doorbell(150, f"rx{number}", 32) for number in range(4)]
REMOVED = [admin(310 + number, "DESTROY_RX", f"rx{number}") for number in range(4)]
WHOLE = [*PROBE, *QUEUES, *POSTED, *received(250, 100), *interrupts(250, 50), *REMOVED]


def run(events: Iterable[Mapping[str, Any]], **traits: set[str]) -> Run:
    watcher = Watcher()
    for event in events:
        watcher.take(event)
    return watcher.run(PARTS, 0, "command", traits)


def lines(first: list[Run], second: list[Run]) -> list[str]:
    return [f"{about}: {line}" for about, group in told(differences(first, second)) for line in group]


def test_the_same_is_the_same() -> None:
    assert lines([run(WHOLE)], [run(WHOLE)]) == []


def test_a_command_more() -> None:
    more = [*PROBE, admin(40, "GET_TYPES"), *WHOLE[len(PROBE) :]]
    assert lines([run(WHOLE)], [run(more)]) == ["load: + GET_TYPES, after CONFIGURE"]
    assert lines([run(more)], [run(WHOLE)]) == ["load: - GET_TYPES, after CONFIGURE"]


def test_a_command_twice() -> None:
    twice = [*PROBE, admin(40, "CONFIGURE", num_blocks=8), *WHOLE[len(PROBE) :]]
    assert lines([run(WHOLE)], [run(twice)]) == ["load: + once more: CONFIGURE, after DESCRIBE"]


def test_another_order_is_told_once() -> None:
    other = [*PROBE[:2], PROBE[3], PROBE[2], *WHOLE[len(PROBE) :]]
    [line] = lines([run(WHOLE)], [run(other)])
    told_of = "DESCRIBE, after CONFIGURE", "CONFIGURE, after write driver_status"  # which of the two was moved is open
    assert line in [f"load: + at another place: {one}" for one in told_of]


def test_fields_of_all_queues_in_a_line() -> None:
    other = [admin(110 + number, "CREATE_RX", f"rx{number}", ring=2 << 30, entries=512) for number in range(4)]
    changed = [*PROBE, *other, *WHOLE[len(PROBE) + len(QUEUES) :]]
    assert lines([run(WHOLE)], [run(changed)]) == ["up: ~ CREATE_RX rx0 to rx3: entries 1024 -> 512"]


def test_a_refused_command() -> None:
    refused = [*PROBE[:3], admin(30, "CONFIGURE", status="INVALID", num_blocks=8), *WHOLE[len(PROBE) :]]
    assert lines([run(WHOLE)], [run(refused)]) == ["load: ~ CONFIGURE: status - -> INVALID"]


def test_another_value_in_a_register() -> None:
    other = [PROBE[0], {**PROBE[1], "flags": ["reset"]}, *WHOLE[2:]]
    assert lines([run(WHOLE)], [run(other)]) == ["load: ~ write driver_status: value run -> reset"]


def test_a_register_that_is_a_doorbell() -> None:
    """As the tail of a mailbox is, which goes up with each message."""

    def ringing(times: int) -> Run:
        bells = [{"time": 12, "kind": "register", "access": "write", "register": "mbx", "value": value}
                 for value in range(times)]  # fmt: skip
        return run([*WHOLE[:2], *bells, *WHOLE[2:]])

    assert lines([ringing(20)], [ringing(30)]) == []
    assert lines([ringing(0)], [ringing(1)]) == ["load: + write mbx, after write driver_status"]


def test_fewer_buffers() -> None:
    fewer = [*PROBE, *QUEUES, *(doorbell(150, f"rx{number}", 8) for number in (0, 1, 3)), *POSTED[2:3], *WHOLE[12:]]
    assert lines([run(WHOLE)], [run(fewer)]) == [
        "up: ~ buffers posted before the first doorbell, to rx0 to rx1, rx3: 32 -> 8",
        "up: ~ buffers posted when the interface is up, to rx0 to rx1, rx3: 32 -> 8",
    ]


def test_interrupts_for_each_packet() -> None:
    many = [*WHOLE, *interrupts(260, 50)]
    assert lines([run(WHOLE)], [run(many)]) == [
        "traffic: ~ interrupts for each 100 frames and packets: 50 -> 100"
    ]  # fmt: skip
    # As far apart as that the tries of one driver are themselves, so nothing is known.
    assert lines([run(WHOLE), run(many)], [run(many), run(many)]) == []


def test_drops() -> None:
    dropped = [*WHOLE, *received(260, 5, "no_buffers")]
    assert "traffic: ~ frames dropped: no_buffers: 0 -> 5" in lines([run(WHOLE)], [run(dropped)])


def test_what_was_lost_ends_measuring_only() -> None:
    more = [*WHOLE[:4], admin(40, "GET_TYPES"), *WHOLE[4:], *received(260, 90), {"lost": 3}]
    assert lines([run(WHOLE)], [run(more)]) == ["load: + GET_TYPES, after CONFIGURE"]


def test_questions_that_are_asked_now_and_then() -> None:
    def asking(*times: int) -> Run:
        return run(sorted((*WHOLE, *(admin(time, "CLOCK", length=40) for time in times)), key=lambda one: one["time"]))

    ours = [asking(15, 115, 215, 315), asking(25, 112, 250)]
    assert lines(ours, [asking(12, 113, 240, 250, 260), asking(35, 120, 205)]) == []
    assert lines(ours, [asking(*range(210, 230)), asking(*range(220, 240))]) == [
        "all parts: ~ CLOCK, times: 3 to 4 -> 20"
    ]  # fmt: skip


def test_fields_that_are_never_the_same() -> None:
    def seeded(seed: int) -> Run:
        return run([*WHOLE[:4], admin(40, "SEED", seed=seed, mode=1), *WHOLE[4:]])

    assert lines([seeded(1), seeded(2)], [seeded(3), seeded(3)]) == []


def test_traits() -> None:
    bad = run(WHOLE, contract={"DBL-005"}, steps={"first frame"})
    good = run(WHOLE, steps={"first frame", "first packet"})
    assert lines([good, good], [bad, bad]) == ["contract: + breaks DBL-005", "steps: - not reached: first packet"]
    assert lines([bad], [good]) == ["contract: - no longer breaks DBL-005", "steps: + first packet"]
    # One try of three shows it: that is chance.
    assert lines([good], [bad, good]) == []


def test_logs_without_numbers() -> None:
    assert log_lines(["[   12.3] gve 0000:01:00.0: 4 queues", "[   99.1] gve 0000:02:00.0: 8 queues"]) == {
        "gve N:N:N.N: N queues"
    }  # fmt: skip


def test_events_have_a_bound() -> None:
    watcher = Watcher(most=10)
    for event in WHOLE:
        watcher.take(event)
    assert watcher.run(PARTS, 0, "command", {}).lost == len(WHOLE) - 1 - 10  # the register that is read is no event


def test_saved_and_loaded() -> None:
    runs = [run(WHOLE, contract={"DBL-005"}), run(WHOLE)]
    assert loaded(json.loads(json.dumps(saved("gve", runs)))) == ("gve", runs)


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"version": 1, "runs": []}, {"version": 2, "runs": [{}]}, {"version": 1, "runs": [{"acts": 3}]},
     {"version": 1, "runs": [3]}],
)  # fmt: skip
def test_what_is_no_recording(data: Any) -> None:
    with pytest.raises(ValueError, match=r"runs|version|no run"):
        loaded(data)


def test_two_saved_drivers_by_the_command(tmp_path: Any) -> None:
    more = [*PROBE, admin(40, "GET_\x1b[2J"), *WHOLE[len(PROBE) :]]
    for name, events in (("a", WHOLE), ("b", more)):
        (tmp_path / f"{name}.json").write_text(json.dumps(saved(name, [run(events)])))
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    same = CliRunner().invoke(cli, ["diff", files[0], files[0]])
    assert same.exit_code == 0 and "no difference: 11 commands" in same.stdout, same.output
    other = CliRunner().invoke(cli, ["diff", *files])
    assert other.exit_code == 3 and "load\n  + GET_\\x1b[2J, after CONFIGURE\n" in other.stdout, other.output
    as_json = json.loads(CliRunner().invoke(cli, ["diff", "--json", *files]).stdout)
    assert [one["sign"] for one in as_json["differences"]] == ["+"]
    (tmp_path / "c.json").write_text("{")
    broken = CliRunner().invoke(cli, ["diff", files[0], str(tmp_path / "c.json")])
    assert broken.exit_code == 1 and "nicmodel diff --save" in str(broken.exception or broken.output)
