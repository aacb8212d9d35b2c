"""The route table, validation and the description made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sporevm.api import convert
from sporevm.api.models import CommandBody, CreateBody
from sporevm.api.openapi import document
from sporevm.api.router import MethodNotAllowed, Router
from sporevm.api.routes import all_routes
from sporevm.api.server import version_key
from sporevm.errors import NotFound, UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_openapi_file_is_current() -> None:
    kept = json.loads((ROOT / "docs/openapi.json").read_text())
    assert kept == json.loads(json.dumps(document())), "run: python tools/gen_openapi.py"


def test_every_reference_of_the_description_resolves() -> None:
    text = json.dumps(document())
    schemas = document()["components"]["schemas"]
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.split('"')[0] in schemas
    ids = [op["operationId"] for path in document()["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids)) == len(all_routes())


def test_router_finds_fixed_parts_before_variable_ones() -> None:
    router = Router(all_routes())
    assert router.find("GET", "/v1/sandboxes/abc/files/stat")[1] == ("abc",)
    assert router.find("GET", "/v1/sandboxes/a%2Fb")[1] == ("a/b",)
    for path in ("/", "/v2", "/v1/sandboxes/a/b/c", "/v1/sandboxes//exec", "/v1/{ref}/methods"):
        with pytest.raises(NotFound):
            router.find("GET", path)
    with pytest.raises(NotFound):
        router.find("GET", "/v1/sandboxes/methods/methods/x")
    with pytest.raises(MethodNotAllowed) as caught:
        router.find("PATCH", "/v1/sandboxes")
    assert caught.value.details() == {"allowed": ["GET", "POST"]}


@pytest.mark.parametrize(
    "change",
    [{"cpus": 10**6}, {"memory_mib": 1}, {"disk_bytes": 1}, {"arch": "vax"}, {"name": "a b"},
     {"env": {"": "x"}}, {"env": {"A": "\0"}}, {"image": "a\0b"}],
)  # fmt: skip
def test_what_a_spec_refuses(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        convert.spec(CreateBody(**change))


def test_command_is_checked() -> None:
    with pytest.raises(UsageError):
        convert.command(CommandBody(argv=["a\0"]))
    with pytest.raises(UsageError):
        convert.command(CommandBody(argv=[""]))


def test_names_that_are_not_utf8_can_be_shown() -> None:
    assert convert.printable("a\udcffb") == "a\ufffdb"


def test_versions_compare_as_numbers() -> None:
    assert version_key("0.10.0") > version_key("0.9.9")
    assert version_key("1.2.3.dev4") == (1, 2, 3)
