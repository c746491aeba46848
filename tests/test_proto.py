"""The generated modules are those of the schemas. When this fails: `make proto`."""

from pathlib import Path

from swarm.wire.generate import TARGET, generate


def test_the_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    generate(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in TARGET.glob("*.py*") if path.name != "__init__.py"}
    assert sorted(made) == sorted(kept)
    for name in made:
        assert made[name] == kept[name], f"{name} is not what its schema makes: run `make proto`"
