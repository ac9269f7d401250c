"""The catalogue, the user's hosts.yaml, and `rk3588 board`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import boards, inventory, simboard
from rk3588.commands.board import board as board_command
from rk3588.errors import BoardError, RkError, TargetError, UsageError

KITCHEN = """\
# my boards
hosts:
  kitchen:        # beside the stove
    board: rock-5b
    address: 192.168.1.20
    user: radxa
    port: 2222
    key: ~/.ssh/kitchen
    jump: door
    groups: [home, fast]
    ram_gb: 16
  door:
    board: orange-pi-5
"""


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder and an empty configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(boards.VARIABLE, raising=False)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return project


def written(text: str, name: str = "hosts.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(board_command, arguments)


def test_catalogue_has_the_known_boards() -> None:
    known = boards.catalogue()
    assert len(known.boards) == 14
    rock = known.board("rock-5b")
    assert (rock.name, rock.soc.name, rock.soc.npu_cores) == ("Radxa Rock 5B", "RK3588", 3)
    assert rock.ram_gb == (4, 8, 16, 32)
    assert known.board("khadas-edge2").soc.name == "RK3588S"


@pytest.mark.parametrize(
    ("compatible", "model", "found"),
    [
        (["radxa,rock-5b", "rockchip,rk3588"], "", "rock-5b"),
        (["rockchip,rk3588s-orangepi-5", "rockchip,rk3588"], "Orange Pi 5", "orange-pi-5"),
        (["somebody,else", "xunlong,orangepi-5-plus"], "", "orange-pi-5-plus"),
        (["rockchip,rk3588"], "RK3588 OPi 5 Ultra", "orange-pi-5-ultra"),
        (["rockchip,rk3588"], "", None),
        (["raspberrypi,5-model-b"], "Raspberry Pi 5", None),
        ([], "", None),
    ],
)
def test_a_board_is_known_by_its_device_tree(compatible: list[str], model: str, found: str | None) -> None:
    """The vendor's second entry, rockchip,rk3588, says nothing: RK3588S boards have it too."""
    board = boards.catalogue().identify(compatible, model)
    assert (board.id if board else None) == found


def test_bandwidth_runs_straight_between_known_clocks_and_in_proportion_outside() -> None:
    soc = boards.catalogue().socs["RK3588"]
    assert soc.bandwidth(528) == (9.9, 9.9)
    assert soc.bandwidth(2112) == (21, 29)
    assert soc.bandwidth(1320) == pytest.approx(((9.9 + 21) / 2, (9.9 + 29) / 2))
    assert soc.bandwidth(264) == pytest.approx((4.95, 4.95))
    assert soc.bandwidth(4224) == pytest.approx((42, 58))


def test_a_host_is_read_whole() -> None:
    host = boards.load(written(KITCHEN)).hosts["kitchen"]
    assert host.board.id == "rock-5b"
    assert (host.address, host.user, host.port, host.jump) == ("192.168.1.20", "radxa", 2222, "door")
    assert host.key == Path("~/.ssh/kitchen").expanduser()
    assert (host.groups, host.ram_gb) == (("home", "fast"), 16)


def test_a_host_needs_only_its_board() -> None:
    host = boards.load(written(KITCHEN)).hosts["door"]
    assert (host.address, host.user, host.port, host.key, host.groups) == ("door", None, 22, None, ())


def test_a_host_stands_for_its_board_with_its_own_memory() -> None:
    known = boards.load(written(KITCHEN))
    assert known.board("kitchen").ram_gb == (16,)
    assert known.board("door").ram_gb == (4, 8, 16, 32)


def test_project_before_user_before_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert boards.load().hosts == {}
    boards.user_file().parent.mkdir(parents=True)
    boards.user_file().write_text("hosts: {attic: {board: rock-5a}}", encoding="utf-8")
    assert list(boards.load().hosts) == ["attic"]
    written("hosts: {cellar: {board: rock-5a}}")
    assert list(boards.load().hosts) == ["cellar"]
    monkeypatch.setenv(boards.VARIABLE, str(written("hosts: {roof: {board: rock-5a}}", "other.yaml")))
    assert list(boards.load().hosts) == ["roof"]


def test_own_board_types_may_be_added() -> None:
    known = boards.load(
        written("boards:\n  my-carrier: {soc: RK3588, ram_gb: [16, 8]}\nhosts:\n  lab: {board: my-carrier}\n")
    )
    assert known.hosts["lab"].board.ram_gb == (8, 16)


WRONG = {
    "hosts:\n  a:\n    board: rock5b\n": (3, "unknown board 'rock5b' of host 'a': did you mean 'rock-5b'?"),
    "hosts:\n  a:\n    board: rock-5b\n    adress: x\n": (4, "key 'adress' in host 'a': did you mean 'address'?"),
    "hsots:\n  a: {}\n": (1, "unknown key 'hsots' in the file: did you mean 'hosts'?"),
    "hosts:\n  a:\n    user: me\n": (3, "host 'a' has no 'board'"),
    "hosts:\n  a:\n    board: rock-5b\n    port: 70000\n": (4, "'port' of host 'a' has to be a whole number"),
    "hosts:\n  a:\n    board: rock-5b\n    port: 022\n": (4, "'port' of host 'a' has to be a whole number"),
    "hosts:\n  a:\n    board: rock-5b\n    port: 22:22\n": (4, "'port' of host 'a' has to be a whole number"),
    "hosts:\n  a:\n    board: rock-5b\n    user: 1000\n": (4, "'user' of host 'a' has to be text; put it in quotes"),
    "hosts:\n  a:\n    board: rock-5b\n    user: yes\n": (4, "'user' of host 'a' has to be text; put it in quotes"),
    "hosts:\n  a:\n    board: rock-5b\n    groups: home\n": (4, "'groups' of host 'a' has to be a list"),
    "hosts:\n  a:\n    board: rock-5b\n    address: -oProxyCommand=x\n": (4, "'address' of host 'a' is '-oProxy"),
    "hosts:\n  a:\n    board: rock-5b\n    jump: me@@x\n": (4, "'jump' of host 'a' is 'me@@x'"),
    "hosts:\n  a:\n    board: rock-5b\n    address: ''\n": (4, "'address' of host 'a' is empty"),
    "hosts:\n  a: {board: rock-5b}\n  b: {board: rock-5b}\n  a: {board: rock-5b}\n": (4, "twice, first in line 2"),
    "hosts:\n  A b: {board: rock-5b}\n": (2, "host 'A b': names have small letters"),
    "hosts:\n  rock-5b: {board: rock-5a}\n": (2, "host 'rock-5b' has the name of a board type"),
    "hosts:\n  - a\n": (2, "'hosts' has to be a mapping"),
    "hosts:\n  a: rock-5b\n": (2, "host 'a' has to be a mapping"),
    "- a\n": (1, "expected `boards:` or `hosts:`"),
    "hosts:\n  a: {board: rock-5b\n": (3, "not valid YAML"),
    "hosts:\n\ta: 1\n": (2, "not valid YAML"),
    'hosts:\n  a: {board: rock-5b, user: "\x07"}\n': (2, "a character that YAML does not allow"),
    "hosts: {}\n---\nhosts: {}\n": (2, "not valid YAML"),
    "hosts:\n  a: {board: rock-5b, jump: b}\n  b: {board: rock-5b, jump: a}\n": (2, "itself: a → b → a"),
    "boards:\n  rock-5b: {soc: RK3588, ram_gb: [4]}\n": (2, "board 'rock-5b' is in the catalogue already"),
    "boards:\n  x: {soc: RK3588X, ram_gb: [4]}\n": (2, "unknown SoC 'RK3588X' of board 'x': did you mean 'RK3588'?"),
    "boards:\n  x: {soc: RK3588}\n": (2, "board 'x' has no 'ram_gb'"),
    "boards:\n  x:\n    soc: RK3588\n    ram_gb: [4]\n    compatible: ['radxa,rock-5b']\n": (5, "by rock-5b as well"),
    "boards:\n  x: {soc: RK3588, ram_gb: [4], compatible: ['rockchip,rk3588']}\n": (2, "every board with the vendor's"),
    "socs:\n  X: {npu_cores: 3, ddr_gb_s: {2112: [29, 21]}}\n": (2, "the lowest and the highest GB/s"),
    "socs:\n  X: {npu_cores: 3, ddr_gb_s: {}}\n": (2, "names no clock"),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_with_file_and_line(text: str) -> None:
    line, message = WRONG[text]
    path = written(text)
    with pytest.raises(BoardError) as caught:
        boards.load(path)
    assert str(caught.value).startswith(f"hosts.yaml, line {line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(BoardError, match=r"cannot read nowhere\.yaml: No such file"):
        boards.load(Path("nowhere.yaml"))
    Path("latin.yaml").write_bytes(b"hosts: {a: {board: rock-5b, user: J\xf6rg}}")
    with pytest.raises(BoardError, match=r"latin\.yaml is not UTF-8 text"):
        boards.load(Path("latin.yaml"))
    with pytest.raises(BoardError, match="nested too deeply"):
        boards.load(written("[" * 5000))


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: "hosts:\n  a: " + b.decode("latin-1")))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Anything is an inventory or a BoardError: never another exception."""
    path = Path("any.yaml")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        boards.load(path)
    except BoardError as error:
        assert str(error)


def test_unknown_names_get_the_nearest() -> None:
    known = boards.load(written(KITCHEN))
    with pytest.raises(UsageError, match="unknown board 'kichen': did you mean 'kitchen'"):
        known.board("kichen")
    with pytest.raises(UsageError, match=re.escape("unknown host 'dor' (hosts.yaml): did you mean 'door'?")):
        known.host("dor")
    assert known.host("door").board.id == "orange-pi-5"


def test_add_keeps_comments_and_order() -> None:
    path = written(KITCHEN + "# the end\n")
    inventory.add_host(path, "attic", {"board": "rock-5a", "groups": ["home", "yes"], "user": "1000"})
    text = path.read_text(encoding="utf-8")
    added = "  attic:\n    board: rock-5a\n    groups: [home, 'yes']\n    user: '1000'\n"
    assert text == KITCHEN + added + "# the end\n"
    assert boards.load(path).hosts["attic"].groups == ("home", "yes")


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# nothing yet",
        "hosts:\n",
        "hosts:   # mine\n# more\n",
        "hosts:\n    deep:\n        board: rock-5a",
        "hosts:\n  a: {board: rock-5a}\n\n\nboards:\n  x: {soc: RK3588, ram_gb: [4]}\n",
        "boards:\n  x: {soc: RK3588, ram_gb: [4]}\n",
        "hosts:\n  a:\n    board: rock-5a\n    groups:\n      - one\n      - two\n",
        "hosts:\r\n  a:\r\n    board: rock-5a\r\n",
    ],
)
def test_add_finds_the_place_in_every_layout(before: str) -> None:
    path = Path("hosts.yaml")
    path.write_bytes(before.encode())
    old = boards.load(path).hosts
    after = inventory.add_host(path, "new", {"board": "rock-5b", "port": 2200})
    assert after.hosts == {**old, "new": after.hosts["new"]} == boards.load(path).hosts
    assert after.hosts["new"].port == 2200
    left = iter(path.read_bytes().decode().splitlines())
    assert all(line in left for line in before.splitlines())  # every old line still there, in order


@pytest.mark.parametrize("before", ["{hosts: {a: {board: rock-5a}}}", "hosts: {a: {board: rock-5a}}\n"])
def test_add_refuses_what_it_cannot_extend(before: str) -> None:
    path = written(before)
    with pytest.raises(BoardError, match=r"put `new: {board: rock-5b}` below its `hosts:` yourself"):
        inventory.add_host(path, "new", {"board": "rock-5b"})
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in Path().iterdir()] == ["hosts.yaml"]


def test_add_through_a_link_and_with_the_files_own_mode() -> None:
    real = written(KITCHEN, "real.yaml")
    real.chmod(0o640)
    Path("hosts.yaml").symlink_to(real.resolve())
    inventory.add_host(Path("hosts.yaml"), "attic", {"board": "rock-5a"})
    assert Path("hosts.yaml").is_symlink()
    assert "attic" in boards.load(real).hosts
    assert real.stat().st_mode & 0o777 == 0o640


def test_add_says_when_it_cannot_write() -> None:
    written("", "file")
    with pytest.raises(TargetError, match=r"cannot write file/hosts\.yaml"):
        inventory.add_host(Path("file/hosts.yaml"), "a", {"board": "rock-5b"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--board", "rock5b"], "unknown board 'rock5b' of host 'a': did you mean 'rock-5b'?"),
        (["A!", "--board", "rock-5b"], "host 'A!': names have small letters"),
        (["a", "--board", "rock-5b", "--address", "-x"], "'address' of host 'a' is '-x'"),
        (["a", "--board", "rock-5b", "--jump", "a"], "host 'a' cannot be its own jump host"),
        (["rock-5a", "--board", "rock-5b"], "host 'rock-5a' has the name of a board type"),
        (["a", "--board", "rock-5b", "--project", "--hosts", "x"], "give --project or --hosts, not both"),
    ],
)
def test_add_command_refuses_bad_arguments(arguments: list[str], message: str) -> None:
    result = run("add", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert "line" not in str(result.exception)  # there is no file yet that could have one
    assert not Path("hosts.yaml").exists()
    assert not boards.user_file().exists()


def test_add_command_writes_where_it_says() -> None:
    result = run("add", "attic", "--board", "rock-5a", "--user", "me", "--group", "home", "--group", "slow")
    assert (result.exit_code, result.stdout) == (0, f"{boards.user_file()}\n")
    assert boards.load().hosts["attic"].groups == ("home", "slow")
    assert run("add", "cellar", "--board", "rock-5a", "--project").stdout == "hosts.yaml\n"
    assert list(boards.load().hosts) == ["cellar"]
    again = run("add", "cellar", "--board", "rock-5a")
    assert "host 'cellar' is in hosts.yaml already" in str(again.exception)


def test_list_and_show() -> None:
    written(KITCHEN)
    result = run("list")
    assert "rock-5b" in result.stdout
    assert "radxa@192.168.1.20:2222" in result.stdout
    listed = json.loads(run("list", "--json").stdout)
    assert len(listed["boards"]) == 14
    assert [h["host"] for h in listed["hosts"]] == ["kitchen", "door"]
    assert listed["hosts"][1] == {"host": "door", "board": "orange-pi-5", "address": "door", "port": 22}
    shown = json.loads(run("show", "kitchen", "--json").stdout)
    assert shown["type"]["soc"] == "RK3588"
    text = run("show", "rock-5a").stdout
    assert re.search(r"at 2112 MHz +21 to 29 GB/s", text)
    assert "119 °C" in text
    missing = run("show", "rock-5z").exception
    assert isinstance(missing, RkError)
    assert "unknown board 'rock-5z': did you mean 'rock-5" in str(missing)


def test_names_with_a_memory_or_as_they_are_sold() -> None:
    known = boards.catalogue()
    for name in ("orange-pi-5-8gb", "orange-pi-5_8GB", "Orange Pi 5 8 GB"):
        with pytest.raises(UsageError, match=r"the type is 'orange-pi-5'; .* --board orange-pi-5 --ram 8"):
            known.board(name)
    assert known.board("Radxa ROCK 5B").id == "rock-5b"
    with pytest.raises(BoardError, match="did you mean 'rock-5b', with 16 GB as its ram_gb"):
        boards.load(written("hosts:\n  a: {board: rock-5b-16gb}\n"))
    with pytest.raises(UsageError, match="unknown board 'x-8gb': known are"):
        known.board("x-8gb")


def test_the_projects_file_does_not_silently_stand_before_the_users_own() -> None:
    own = boards.user_file()
    own.parent.mkdir(parents=True)
    own.write_text("hosts:\n  kitchen: {board: rock-5b, address: 192.168.1.20}\n  door: {board: orange-pi-5}\n")
    assert not run("list").stderr.count("not of")
    written("hosts:\n  kitchen: {board: rock-5b, address: 203.0.113.9}\n  door: {board: orange-pi-5}\n")
    assert f"those of ./hosts.yaml here, not of {own}" in run("list").stderr
    known = boards.load()
    assert known.host("door").board.id == "orange-pi-5"  # the same in both
    for use in (known.host, known.board):
        with pytest.raises(UsageError, match=r"'kitchen' is one board in hosts\.yaml and another in .*--hosts FILE"):
            use("kitchen")
    assert boards.load(Path("hosts.yaml")).host("kitchen").address == "203.0.113.9"
    assert boards.load(own).host("kitchen").address == "192.168.1.20"
    own.write_text("hosts: [")
    with pytest.raises(UsageError, match="one board in"):
        boards.load().host("door")


def test_remove_keeps_all_else() -> None:
    path = written(KITCHEN.replace("jump: door", "port: 2223").replace("    port: 2222\n", "") + "# the end\n")
    before = path.read_text(encoding="utf-8")
    inventory.add_host(path, "attic", {"board": "rock-5a", "groups": ["home"]})
    inventory.remove_host(path, "attic")
    assert path.read_text(encoding="utf-8") == before
    assert run("rm", "kitchen").stdout == "hosts.yaml\n"
    assert path.read_text(encoding="utf-8") == "# my boards\nhosts:\n  door:\n    board: orange-pi-5\n# the end\n"
    assert run("rm", "door").exit_code == 0
    assert boards.load().hosts == {}
    inventory.add_host(path, "again", {"board": "rock-5b"})


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (KITCHEN, "door", "host 'kitchen' is reached through 'door'"),
        (KITCHEN, "kichen", "no host 'kichen' in hosts.yaml: did you mean 'kitchen'"),
        (KITCHEN, "rock-5b", "rock-5b is a type of board, which stays"),
        ("hosts: {a: {board: rock-5b}, b: {board: rock-5b}}\n", "a", "remove 'a' from it yourself"),
        ("hosts:\n  a: &x {board: rock-5b}\n  b: *x\n", "a", "remove 'a' from it yourself"),
    ],
)
def test_remove_refuses_what_it_cannot_do(text: str, name: str, message: str) -> None:
    path = written(text)
    result = run("rm", name)
    assert isinstance(result.exception, RkError)
    assert message in str(result.exception)
    assert path.read_text(encoding="utf-8") == text


def test_a_simulated_board_that_is_listed_can_be_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "state" / "rk3588" / "boards" / "attic"
    folder.mkdir(parents=True)
    simboard.write_description(folder, "server", os.getpid(), "127.0.0.1", 2222, "me", "ssh-ed25519 AAAA")
    assert "attic" in run("list").stdout
    assert json.loads(run("show", "attic", "--json").stdout)["port"] == 2222
    assert "rk3588 board down attic" in str(run("rm", "attic").exception)


def test_a_user_whom_nobody_knows_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~nobody-here`` stays what it is, as in a shell; it is no reason to break off."""
    known = boards.load(written("hosts: {attic: {board: rock-5a, key: ~nobody-here/id}}"))
    assert known.hosts["attic"].key == Path("~nobody-here/id")
    monkeypatch.setenv(boards.VARIABLE, "~nobody-here/hosts.yaml")
    assert boards.find_inventory() == Path("~nobody-here/hosts.yaml")
