"""converters/README.md is made from the registries, and its examples work."""

import re
import sys
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from pivotune.converters.dialects import DIALECTS
from pivotune.converters.programs import NAMES, programs
from pivotune.converters.reference import reference
from pivotune.converters.stored import Stored
from pivotune.converters.tensor import RawTensor

PAGE = (Path(str(files("pivotune.converters"))) / "README.md").read_text("utf-8")


def test_the_page_is_up_to_date():
    assert reference() == PAGE, "make it again: python -m pivotune.converters.reference > converters/README.md"
    assert all(f"| `{dialect}` |" in PAGE for dialect in DIALECTS)
    assert all(f" {name} |" in PAGE for name in NAMES)


def test_the_new_dialect_of_the_page_reads_its_file(rows, monkeypatch, same):
    code = re.search(r'```python\n(""".*?)```', PAGE, re.S)[1]
    name = "pivotune.converters.dialects.cube"
    module = module_from_spec(spec_from_loader(name, None))
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, "cube.py", "exec"), module.__dict__)
    a, b = rows(2, 768), rows(2, 768)
    cube = RawTensor("F32", (2, 2, 768), bytes(a.data) + bytes(b.data))
    file = Stored(Path("x.safetensors"), {"embeddings": cube}, {"names": '["cat", "dog"]'})
    assert module.detect(file)
    assert not any(dialect.detect(file) for dialect in DIALECTS.values())
    found = {embedding.name: embedding.vectors["clip_l"] for embedding in module.read(file).embeddings}
    assert same(found, {"cat": a, "dog": b})


def test_every_program_has_rules_for_loras_and_kinds_that_exist():
    from pivotune.converters.families import all_families
    from pivotune.converters.lora_modules import KINDS, OTHERS

    for name in NAMES:
        program = programs()[name]
        assert set(program.lora_kinds) <= {*KINDS, *OTHERS} - {"unknown"}
        assert program.other_kinds in ("skipped", "refused")
        named = [family for families in program.lora_names for family in families.split()]
        assert set(named) <= all_families().keys()
        assert len(named) == len(set(named))
        assert {*program.layouts, *program.refuses} - {"*"} <= all_families().keys()
