"""The dry run judges tables that a person changed: one line says who, where, what, both values and the rule."""

from itertools import pairwise

import pytest

from hiertrain.program.dry_run import dry_run
from hiertrain.program.table import from_csv
from hiertrain.values import InputError
from tests.program.test_program import PROFILE
from tests.program.test_table import TABLE

MOVED = "edge,receive,gradients,device,1..1,,float32,500,\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # The form of one action.
        ("device,1..1,,float32,500", "edge,1..1,,float32,500", r"edge, action 8 \(.*\): peer 'edge'; must be another"),
        ("samples,edge,,", "samples,phone,,", "device, action 1 .*: peer 'phone'; must be another worker .*: edge"),
        ("device,forward,,,", "device,forward,,edge,", "device, action 2 .*: peer 'edge'; only messages have one"),
        ("send,samples,edge", "send,,edge", "device, action 1 .*: role None; a message needs one"),
        ("2..4,uint8,300", "2..4,uint8,299", "device, action 1 .*: size_bytes 299; 300 are what uint8 takes"),
        ("2..4,uint8,300", "2..4,zlib,2", "device, action 1 .*: size_bytes 2; must be at least 1 per row, of 3"),
        (
            "2..4,uint8,300",
            "2..4,scaled-uint8,300",
            "action 1 .*: encoding 'scaled-uint8'; of samples must be one of ui",
        ),
        (
            "edge,1,0..1,float32,2000",
            "edge,3,0..1,float32,2000",
            "layers 0..3 .m has 3.; a cut comes after one layer f",
        ),
        ("edge,1..1,,float32,500", "edge,2..2,,float32,500", "layers 2..2 against 1..1; both sides must agree"),
        ("edge,forward,,,1..1,2..4", "edge,forward,,,1..1,", "edge, action 2 .*: rows none; must be some of 0..4"),
        ("edge,update,,,1..3", "edge,update,,,1..4", r"edge, action 9 .*: layers 1..4 .*; must be a range within 1..3"),
        (
            "edge,update,,,1..3",
            "edge,update,,,1..2",
            "program: no worker will update layer 3; must be one worker, once",
        ),
        # The two sides of a message, and the order.
        (
            "edge,receive,samples,device,,2..4,uint8,300",
            "edge,receive,samples,device,,2..3,uint8,200",
            "device, action 1, will send .*, but edge, action 1, will receive .*: rows 2..4 against 2..3, size_bytes "
            "300 against 200; both sides must agree",
        ),
        ("device,send,samples,edge,,2..4,uint8,300,\n", "", "edge would hold the data|deadlocks|device holds"),
        ("edge,receive,samples,device,,2..4,uint8,300,\n", "", r"unread: device, action 1 \(.*\); each must have"),
        (
            "edge,send,weights,device,1..1,,float32,500,\n",
            "",
            r"deadlocks: device waits at action 7 \(receive weights ",
        ),
        # The data.
        ("1..1,2..4,,", "1..1,2..3,,", "it holds rows 2..4 of raw samples, this needs rows 2..3 of raw samples"),
        ("edge,backward,,,1..1,2..4,,,\n", "", "forward layers 1..1 of 3 samples still waits for its backward action"),
        ("edge,update,,,1..3,,,,\n", "", "no worker will update layer 1; must be one worker, once"),
        (
            "device,backward",
            "device,update,,,1..3,,,,\ndevice,backward",
            "device, edge will update layer 1; must be one worker",
        ),
        (
            "device,backward,,,1..1,0..1,,,\n",
            "",
            "device, action 5 .*: it has no gradients of layers 1; must have all that it sends",
        ),
        ("2..3,2..4 0..1", "2..3,0..4", "holds rows 2..4 0..1 after layer 1, this needs rows 0..4 after layer 1"),
    ],
)
def test_a_changed_table_is_refused_in_one_line(old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(InputError, match=message) as caught:
        dry_run(from_csv(TABLE.replace(old, new)), PROFILE.chain)
    assert "\n" not in str(caught.value)


OWNED = """worker,op,role,peer,layers,rows,encoding,size_bytes,ahead
device,forward,,,1..1,0..4,,,
device,send,activations,edge,1,0..4,float32,5000,
device,receive,activation gradients,edge,1,0..4,float32,5000,
device,backward,,,1..1,0..4,,,
device,update,,,1..1,,,,
edge,receive,activations,device,1,0..4,float32,5000,
edge,forward,,,2..3,0..4,,,
edge,backward,,,2..3,0..4,,,
edge,send,activation gradients,device,1,0..4,float32,5000,
edge,update,,,2..3,,,,
"""


def test_each_layer_is_updated_by_one_worker_that_has_its_gradients() -> None:
    dry_run(from_csv(OWNED), PROFILE.chain)
    both = OWNED.replace("edge,update,,,2..3", "edge,update,,,1..3")
    with pytest.raises(InputError, match="program: device, edge will update layer 1; must be one worker, once"):
        dry_run(from_csv(both), PROFILE.chain)
    nobody = OWNED.replace("device,update,,,1..1,,,,\n", "")
    with pytest.raises(InputError, match="program: no worker will update layer 1; must be one worker, once"):
        dry_run(from_csv(nobody), PROFILE.chain)
    swapped = OWNED.replace("device,update,,,1..1", "device,update,,,2..3")
    swapped = swapped.replace("edge,update,,,2..3", "edge,update,,,1..1")
    with pytest.raises(InputError, match=r"device, action 5 .*: it has no gradients of layers 2..3; an update needs"):
        dry_run(from_csv(swapped), PROFILE.chain)


def test_gradients_that_come_after_the_update_are_refused() -> None:
    late = TABLE.replace(MOVED, "").replace("edge,send,weights", f"{MOVED}edge,send,weights")
    with pytest.raises(
        InputError, match=r"edge, action 9 .*: gradients of layers 1 were sent or used before; must come before"
    ):
        dry_run(from_csv(late), PROFILE.chain)


def test_every_row_reaches_the_loss_once() -> None:
    """Both workers train alone on the same rows, or the device leaves some out."""
    table = """worker,op,role,peer,layers,rows,encoding,size_bytes,ahead
device,send,samples,edge,,0..2,uint8,300,
device,forward,,,1..3,2..4,,,
device,backward,,,1..3,2..4,,,
device,send,gradients,edge,1..3,,float32,1000,
device,receive,weights,edge,1..3,,float32,1000,
edge,receive,samples,device,,0..2,uint8,300,
edge,forward,,,1..3,0..2,,,
edge,backward,,,1..3,0..2,,,
edge,receive,gradients,device,1..3,,float32,1000,
edge,update,,,1..3,,,,
edge,send,weights,device,1..3,,float32,1000,
"""
    with pytest.raises(InputError, match=r"rows 2 reach the loss more than once; every row from 0 to 4 must"):
        dry_run(from_csv(table), PROFILE.chain)
    with pytest.raises(InputError, match=r"rows 3 reach the loss never; every row from 0 to 5 must"):
        dry_run(from_csv(table.replace("2..4", "4..5")), PROFILE.chain)
    dry_run(from_csv(table.replace("2..4", "3..4")), PROFILE.chain)


# Samples may be sent ahead: two iterations here, since the 2 makes them overlap.
AHEAD = TABLE.replace("uint8,300,\n", "uint8,300,2\n", 1)
SAMPLES = "device,send,samples,edge,,2..4,uint8,300,2\n"


def test_samples_that_are_sent_ahead_at_any_place_are_no_fault() -> None:
    behind = "device,receive,weights,edge,1..1,,float32,500,\n"
    for table in (AHEAD, AHEAD.replace(SAMPLES, "").replace(behind, f"{behind}{SAMPLES}")):
        program = from_csv(table)
        assert program.overlapped
        dry_run(program, PROFILE.chain)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("float32,2000,", "float32,2000,1", "device, action 3 .*: ahead 1; only raw samples are sent ahead, and only"),
        (
            "edge,receive,samples,device,,2..4,uint8,300,",
            "edge,receive,samples,device,,2..4,uint8,300,1",
            "action 1 .*: a",
        ),
        (SAMPLES, f"{SAMPLES}{SAMPLES.replace('300,2', '300,1')}", "leaves messages unread: device, action "),
        (
            "edge,receive,samples,device,,2..4,uint8,300,\n",
            "edge,receive,samples,device,,2..4,uint8,300,\n" * 2,
            r"deadlocks: .*edge waits at action 2 \(receive samples",
        ),
        (
            "device,receive,weights,edge,1..1,,float32,500,\nedge,",
            f"device,receive,weights,edge,1..1,,float32,500,\n{SAMPLES.replace('300,2', '300,0')}edge,",
            "leaves messages unread",
        ),
    ],
)
def test_what_is_sent_ahead_is_judged(old: str, new: str, message: str) -> None:
    assert old in AHEAD
    with pytest.raises(InputError, match=message):
        dry_run(from_csv(AHEAD.replace(old, new, 1)), PROFILE.chain)


@pytest.mark.parametrize(("ahead", "message"), [(2, "edge, action 2 .*: it holds .* received once"), (1, "must agree")])
def test_two_messages_of_samples_to_one_worker_are_refused(ahead: int, message: str) -> None:
    first, second = "2..3,uint8,200", "4,uint8,100"
    parts = SAMPLES.replace("2..4,uint8,300", first) + SAMPLES.replace("2..4,uint8,300,2", f"{second},{ahead}")
    receive = "edge,receive,samples,device,,2..4,uint8,300,\n"
    both = "".join(receive.replace("2..4,uint8,300", part) for part in (first, second))
    with pytest.raises(InputError, match=message):
        dry_run(from_csv(AHEAD.replace(SAMPLES, parts).replace(receive, both)), PROFILE.chain)


def test_samples_that_are_sent_too_late_deadlock() -> None:
    behind = "device,receive,weights,edge,1..1,,float32,500,\n"
    late = AHEAD.replace(SAMPLES, "").replace(behind, f"{behind}{SAMPLES.replace('300,2', '300,0')}")
    with pytest.raises(InputError, match=r"deadlocks: .*edge waits at action 1 \(receive samples"):
        dry_run(from_csv(late), PROFILE.chain)


def test_nothing_is_sent_ahead_where_iterations_are_separated() -> None:
    with pytest.raises(InputError, match=r"device, action 1 .*: ahead 2; only raw samples .* where iterations overlap"):
        dry_run(from_csv(AHEAD).model_copy(update={"overlapped": False}), PROFILE.chain)


def test_gradients_of_some_layers_are_sent_when_no_other_sample_goes_through_these() -> None:
    """As buckets are: those of the last layers while the first ones are still computed."""
    chain = PROFILE.chain
    sizes = [after - before for before, after in pairwise(chain.parameter_prefix_bytes)]
    table = f"""worker,op,role,peer,layers,rows,encoding,size_bytes,ahead
device,forward,,,1..1,0..3,,,
device,forward,,,2..2,0..3,,,
device,send,activations,edge,2,0..3,float32,{4 * chain.output_bytes(2)},
device,receive,activation gradients,edge,2,0..3,float32,{4 * chain.output_bytes(2)},
device,backward,,,2..2,0..3,,,
device,send,gradients,edge,2..2,,float32,{sizes[1]},
device,backward,,,1..1,0..3,,,
device,send,gradients,edge,1..1,,float32,{sizes[0]},
edge,receive,activations,device,2,0..3,float32,{4 * chain.output_bytes(2)},
edge,forward,,,3..3,0..3,,,
edge,backward,,,3..3,0..3,,,
edge,send,activation gradients,device,2,0..3,float32,{4 * chain.output_bytes(2)},
edge,receive,gradients,device,2..2,,float32,{sizes[1]},
edge,update,,,2..3,,,,
edge,send,weights,device,2..2,,float32,{sizes[1]},
edge,receive,gradients,device,1..1,,float32,{sizes[0]},
edge,update,,,1..1,,,,
edge,send,weights,device,1..1,,float32,{sizes[0]},
device,receive,weights,edge,2..2,,float32,{sizes[1]},
device,receive,weights,edge,1..1,,float32,{sizes[0]},
"""
    dry_run(from_csv(table), chain)
    backward, send = "device,backward,,,2..2,0..3,,,\n", f"device,send,gradients,edge,2..2,,float32,{sizes[1]},\n"
    with pytest.raises(InputError, match=r"device, action 5 .*: it has no gradients of layers 2; must have all"):
        dry_run(from_csv(table.replace(backward + send, send + backward)), chain)
