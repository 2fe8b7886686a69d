"""The local Modal, used by the real client: Dicts, in containers and from the client."""

import sys

import pytest

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import tiny_app
from tiny_app import stdout_of

service, write_app = tiny_app.service, tiny_app.write_app  # fixtures


def test_dict_in_a_client(service, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import modal

def raises(error, function, *arguments):
    try:
        function(*arguments)
    except error:
        return True

assert raises(modal.exception.NotFoundError, modal.Dict.from_name("runs").hydrate)
runs = modal.Dict.from_name("runs", create_if_missing=True)
assert runs.get("a") is None and runs.get("a", 0) == 0 and "a" not in runs and runs.len() == 0
assert raises(KeyError, runs.pop, "a") and runs.pop("a", "default") == "default"

assert runs.put("a", 1) and runs.put("a", 2)
assert not runs.put("a", 3, skip_if_exists=True) and runs.put("none", None, skip_if_exists=True)
runs.update({("key", 3): [4]}, b=5)
assert runs["a"] == 2 and "a" in runs and runs.contains("none") and runs["none"] is None and runs.len() == 4
assert dict(runs.items()) == {"a": 2, "none": None, ("key", 3): [4], "b": 5}
assert set(runs.keys()) == {"a", "none", ("key", 3), "b"} and 5 in list(runs.values())
assert runs.pop("none") is None and "none" not in runs
assert runs.pop("b") == 5

same = modal.Dict.from_name("runs")
assert same["a"] == 2 and modal.Dict.from_id(same.object_id)["a"] == 2 and same.info().name == "runs"
for name in ("emptied", "deleted"):
    modal.Dict.from_name(name, create_if_missing=True)["a"] = 1
modal.Dict.from_name("emptied").clear()
assert modal.Dict.from_name("emptied").len() == 0
modal.Dict.objects.delete("deleted")
assert raises(modal.exception.NotFoundError, modal.Dict.from_name("deleted").hydrate)
with modal.Dict.ephemeral() as one, modal.Dict.ephemeral() as other:
    one["a"] = 1
    assert "a" not in other
"""
    )
    stdout_of(service.python(script))
    assert service.dict("runs") == {"a": 2, ("key", 3): [4]}
    assert service.dict("emptied") == service.dict("deleted") == service.dict("never") == {}
    assert service.failures == []


def test_key_that_two_containers_put_at_the_same_time_is_put_by_one(service, write_app, tmp_path):
    app = write_app(
        """
runs = modal.Dict.from_name("runs", create_if_missing=True)  # a container looks it up when it first uses it

@app.function()
def claim(folder: str, me: int, other: int) -> bool:
    (Path(folder) / str(me)).touch()
    wait_for(Path(folder) / str(other))
    return runs.put("claimed by", me, skip_if_exists=True)

@app.function()
def first_key(given: modal.Dict) -> str:
    return next(given.keys())

@app.local_entrypoint()
def main(folder: str):
    print_line("claims", *claim.starmap([(folder, 1, 2), (folder, 2, 1)]))
    print_line("winner", runs["claimed by"])
    print_line("argument", first_key.remote(runs))
"""
    )
    (tmp_path / "meeting").mkdir()
    lines = stdout_of(service.modal("run", f"{app}::main", "--folder", tmp_path / "meeting")).splitlines()
    content = service.dict("runs")
    winner = content["claimed by"]
    assert content == {"claimed by": winner}
    assert f"claims {winner == 1} {winner == 2}" in lines
    assert f"winner {winner}" in lines
    assert "argument claimed by" in lines
    assert [len(container.input_ids) for container in service.containers] == [1, 1, 1]
