"""The dry run judges tables that a person changed: one line says who, where, what, both values and the rule."""

import pytest

from hiertrain.program.dry_run import dry_run
from hiertrain.program.table import from_csv
from hiertrain.values import InputError
from tests.program.test_program import PROFILE
from tests.program.test_table import TABLE

MOVED = "edge,receive,gradients,device,1..1,,float32,500\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # The form of one action.
        ("device,1..1,,float32,500", "edge,1..1,,float32,500", r"edge, action 8 \(.*\): peer 'edge'; must be another"),
        ("samples,edge,,", "samples,phone,,", "device, action 1 .*: peer 'phone'; must be another worker .*: edge"),
        ("device,forward,,,", "device,forward,,edge,", "device, action 2 .*: peer 'edge'; only messages have one"),
        ("send,samples,edge", "send,,edge", "device, action 1 .*: role None; a message needs one"),
        ("2..4,uint8,300", "2..4,uint8,299", "device, action 1 .*: size_bytes 299; 300 are what uint8 takes"),
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
        ("edge,1..1,,float32,500", "edge,2..2,,float32,500", "layers 2..2 .*; parameters travel from layer 1 on"),
        ("edge,forward,,,1..1,2..4", "edge,forward,,,1..1,", "edge, action 2 .*: rows none; must be some of 0..4"),
        ("edge,update,,,1..3", "edge,update,,,1..2", r"edge, action 9 .*: layers 1..2 .*; the update is of all, 1..3"),
        # The two sides of a message, and the order.
        (
            "edge,receive,samples,device,,2..4,uint8,300",
            "edge,receive,samples,device,,2..3,uint8,200",
            "device, action 1, will send .*, but edge, action 1, will receive .*: rows 2..4 against 2..3, size_bytes "
            "300 against 200; both sides must agree",
        ),
        ("device,send,samples,edge,,2..4,uint8,300\n", "", "edge would hold the data|deadlocks|device holds"),
        ("edge,receive,samples,device,,2..4,uint8,300\n", "", r"unread: device, action 1 \(.*\); each must have"),
        ("edge,send,weights,device,1..1,,float32,500\n", "", r"deadlocks: device waits at action 7 \(receive weights "),
        # The data.
        ("1..1,2..4,,", "1..1,2..3,,", "it holds rows 2..4 of raw samples, this needs rows 2..3 of raw samples"),
        ("edge,backward,,,1..1,2..4,,\n", "", "forward layers 1..1 of 3 samples still waits for its backward action"),
        ("edge,update,,,1..3,,,\n", "", "no worker will update; must be one worker, once"),
        ("device,backward", "device,update,,,1..3,,,\ndevice,backward", "device, edge will update; must be one worker"),
        (
            "device,backward,,,1..1,0..1,,\n",
            "",
            "device, action 5 .*: it has gradients of layers 1..0, this sends 1..1",
        ),
        ("2..3,2..4 0..1", "2..3,0..4", "holds rows 2..4 0..1 after layer 1, this needs rows 0..4 after layer 1"),
    ],
)
def test_a_changed_table_is_refused_in_one_line(old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(InputError, match=message) as caught:
        dry_run(from_csv(TABLE.replace(old, new)), PROFILE.chain)
    assert "\n" not in str(caught.value)


def test_gradients_that_come_after_the_update_are_refused() -> None:
    late = TABLE.replace(MOVED, "").replace("edge,send,weights", f"{MOVED}edge,send,weights")
    with pytest.raises(
        InputError, match=r"edge, action 9 .*: its gradients were sent or used before; must come before"
    ):
        dry_run(from_csv(late), PROFILE.chain)


def test_every_row_reaches_the_loss_once() -> None:
    """Both workers train alone on the same rows, or the device leaves some out."""
    table = """worker,op,role,peer,layers,rows,encoding,size_bytes
device,send,samples,edge,,0..2,uint8,300
device,forward,,,1..3,2..4,,
device,backward,,,1..3,2..4,,
device,send,gradients,edge,1..3,,float32,1000
device,receive,weights,edge,1..3,,float32,1000
edge,receive,samples,device,,0..2,uint8,300
edge,forward,,,1..3,0..2,,
edge,backward,,,1..3,0..2,,
edge,receive,gradients,device,1..3,,float32,1000
edge,update,,,1..3,,,
edge,send,weights,device,1..3,,float32,1000
"""
    with pytest.raises(InputError, match=r"rows 2 reach the loss more than once; every row from 0 to 4 must"):
        dry_run(from_csv(table), PROFILE.chain)
    with pytest.raises(InputError, match=r"rows 3 reach the loss never; every row from 0 to 5 must"):
        dry_run(from_csv(table.replace("2..4", "4..5")), PROFILE.chain)
    dry_run(from_csv(table.replace("2..4", "3..4")), PROFILE.chain)
