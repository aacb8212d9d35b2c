"""Command lines: what is an option, what an operand, and where the command starts."""

from __future__ import annotations

from argparse import Namespace

import pytest

from sporevm.cli.context import Context
from sporevm.cli.main import load, main, overview, run
from sporevm.cli.options import command, environment, pairs
from sporevm.cli.parser import HelpAsked, Parser
from sporevm.cli.verbs import ALIASES, ENTRIES, GROUPS, find
from sporevm.errors import UsageError


def parser_of(name: str) -> Parser:
    entry = ENTRIES[name]
    return load(entry).parser(entry)


def split(verb: str, line: str) -> tuple[Namespace, list[str], list[str]]:
    args, words = parser_of(verb).parse_command(line.split(), operands=1)
    return args, args.operands, words


@pytest.mark.parametrize(
    ("line", "operands", "words"),
    [
        ("", [], []),
        ("alpine", ["alpine"], []),
        ("-- uname -a", [], ["uname", "-a"]),
        ("alpine uname -a", ["alpine"], ["uname", "-a"]),
        ("alpine -- uname -a", ["alpine"], ["uname", "-a"]),
        ("-it alpine sh", ["alpine"], ["sh"]),
        ("alpine -it -- sh", ["alpine"], ["sh"]),
        ("-e A=1 alpine env -e", ["alpine"], ["env", "-e"]),
        ("-e A=1 -m 1G --name x alpine env", ["alpine"], ["env"]),
        ("--name=x alpine env", ["alpine"], ["env"]),
        ("-m1G alpine env", ["alpine"], ["env"]),
        ("-ite A=1 alpine env", ["alpine"], ["env"]),
        ("-iteA=1 alpine env", ["alpine"], ["env"]),
        ("alpine tar x -", ["alpine"], ["tar", "x", "-"]),
        ("alpine echo -- --help", ["alpine"], ["echo", "--", "--help"]),
        ("alpine -- -- x", ["alpine"], ["--", "x"]),
        ("--rm -- --version", [], ["--version"]),
    ],
)
def test_where_a_command_starts(line: str, operands: list[str], words: list[str]) -> None:
    assert split("run", line)[1:] == (operands, words)


def test_options_on_either_side_of_the_operand() -> None:
    before, _, _ = split("exec", "-i -u nobody box -- id")
    after, _, _ = split("exec", "box -i -u nobody -- id")
    assert (before.interactive, before.user) == (after.interactive, after.user) == (True, "nobody")


def test_values_may_look_like_options() -> None:
    args, operands, words = split("run", "--env=-x=1 alpine env")
    assert (args.env, operands, words) == (["-x=1"], ["alpine"], ["env"])


@pytest.mark.parametrize(
    ("verb", "line", "message", "hint"),
    [
        ("run", "--memry 1G", "run: unknown option --memry", "did you mean --memory?"),
        ("run", "-x", "run: unknown option -x", ""),
        ("run", "--memory", "run: -m/--memory: expected one argument", "see: spore run --help"),
        ("run", "--cpus two", "run: -c/--cpus: invalid int value: 'two'", "see: spore run --help"),
    ],
)
def test_wrong_options(verb: str, line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        split(verb, line)
    assert caught.value.message == message
    if hint:
        assert caught.value.hint == hint


def test_missing_operands_are_named() -> None:
    with pytest.raises(UsageError, match="stop: .*BOX"):
        parser_of("stop").parse([])
    with pytest.raises(UsageError, match="unexpected argument 'extra'"):
        parser_of("ls").parse(["extra"])


def test_abbreviations_are_refused() -> None:
    """A script that uses one would break when an option is added."""
    with pytest.raises(UsageError, match="unknown option --mem"):
        split("run", "--mem 1G alpine")


@pytest.mark.parametrize(
    ("words", "name", "count"),
    [
        (["run", "x"], "run", 1),
        (["ps"], "ls", 1),
        (["image", "ls"], "image ls", 2),
        (["setup", "kernel"], "setup", 1),
        (["setup", "preflight"], "doctor", 2),
        (["doctor"], "doctor", 1),
    ],
)
def test_find(words: list[str], name: str, count: int) -> None:
    found = find(words)
    assert found is not None
    assert (found[0].name, found[1]) == (name, count)


@pytest.mark.parametrize("words", [["image"], ["image", "lss"], ["rnu"], [""]])
def test_find_nothing(words: list[str]) -> None:
    assert find(words) is None


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("rnu", "there is no verb 'rnu'", "did you mean run?"),
        ("xyzzy", "there is no verb 'xyzzy'", "see: spore --help"),
        ("image lss", "there is no verb 'image lss'", "did you mean ls?"),
    ],
)
def test_unknown_verbs(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(line.split(), Context())
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ENTRIES)
def test_every_verb_has_a_whole_help(name: str) -> None:
    entry = ENTRIES[name]
    text = parser_of(name).format_help()
    assert text.startswith(f"Usage:  spore {name} [OPTIONS]")
    assert f"\n\n{entry.summary}\n" in text
    assert "--help" in text
    assert "\n\nExamples:\n" in text
    examples = load(entry).examples
    assert examples
    assert any(f"spore {name}" in line for line, _ in examples)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "SUPPRESS" not in text


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_wins_over_what_is_missing(
    name: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*name.split(), flag]) == 0
    assert capsys.readouterr().out.startswith(f"Usage:  spore {name}")


def test_help_of_a_command_is_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    args, operands, words = split("run", "alpine ls --help")
    assert (operands, words) == (["alpine"], ["ls", "--help"])
    with pytest.raises(HelpAsked):
        split("run", "alpine --help")


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_overview(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out == overview()
    for entry in ENTRIES.values():
        assert entry.name in out
        assert entry.summary in out


def test_help_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "image", "ls"]) == 0
    assert capsys.readouterr().out.startswith("Usage:  spore image ls")


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ENTRIES if name.startswith(f"{group} "))


def test_aliases_lead_to_verbs() -> None:
    assert set(ALIASES.values()) <= set(ENTRIES)
    assert not set(ALIASES) & set(ENTRIES)


@pytest.mark.parametrize(
    "words", [["--home", "/h", "--json", "-q", "ls"], ["ls", "--home", "/h", "--json", "-q"]]
)
def test_global_options_on_either_side(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = Context()
    monkeypatch.setattr(load(ENTRIES["ls"]), "run", lambda _args, _ctx: 0)
    assert run(words, ctx) == 0
    assert (str(ctx.home), ctx.json, ctx.quiet) == ("/h", True, True)


# -- values ----------------------------------------------------------------------------------------


def test_environment(tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "here")
    monkeypatch.delenv("NOT_HERE", raising=False)
    file = tmp_path / "env"  # type: ignore[operator]
    file.write_text("# a comment\n\nA=file\nB=x=y \nFROM_HERE\n")
    found = environment(["A=option", "NOT_HERE", "EMPTY="], [str(file)])
    assert found == {"A": "option", "B": "x=y", "FROM_HERE": "here", "EMPTY": ""}


@pytest.mark.parametrize("setting", ["=x", ""])
def test_environment_needs_names(setting: str) -> None:
    with pytest.raises(UsageError, match="has no name"):
        environment([setting], [])


def test_environment_file_that_is_missing() -> None:
    with pytest.raises(UsageError, match="--env-file nowhere: No such file"):
        environment([], ["nowhere"])


def test_pairs() -> None:
    assert pairs(["a=1", "b", "c=x=y"], what="label") == {"a": "1", "b": "", "c": "x=y"}


def test_command_body_fits_the_api() -> None:
    import msgspec

    from sporevm.api.models import CommandBody

    args, _, words = split("exec", "-i -e A=1 -w /tmp -u nobody --timeout 1m box -- id -u")
    body = msgspec.convert(command(args, words), CommandBody)
    assert body == CommandBody(
        argv=["id", "-u"], env={"A": "1"}, cwd="/tmp", user="nobody", stdin=True, timeout=60.0
    )


def test_sandbox_body_fits_the_api() -> None:
    import msgspec

    from sporevm.api.models import CreateBody
    from sporevm.cli.run import _sandbox

    line = "-m 1G -c 2 --disk 2G --ttl 1h --name n --hostname h -l k=v --arch arm64 --vmm auto x"
    args, operands, _ = split("run", line)
    body = msgspec.convert(_sandbox(args, operands[0]), CreateBody)
    assert body == CreateBody(
        image="x", name="n", arch="arm64", cpus=2, memory_mib=1024, disk_bytes=2 << 30,
        hostname="h", labels={"k": "v"}, ttl=3600.0, auto_remove=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "removed"),
    [("", True), ("--name n", False), ("--name n --rm", True), ("-d", False), ("-d --rm", True)],
)
def test_who_is_removed(line: str, removed: bool) -> None:
    from sporevm.cli.run import _sandbox

    args, _, _ = split("run", line)
    assert _sandbox(args, "base").get("auto_remove", False) is removed


@pytest.mark.parametrize(
    "line",
    [
        "run -d -i -- x",
        "run -d -t -- x",
        "run -d --timeout 5",
        "exec",
        "exec box",
        "exec -d -i b x",
    ],
)
def test_nonsense_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.startswith("spore: ")
