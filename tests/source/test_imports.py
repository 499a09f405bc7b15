"""The check of imports finds circles between files, and no crate has one."""

import imports
import pytest


def crate(directory, **sources):
    """Writes a crate of the given modules and reads it."""
    declared = "".join(f"mod {name};\n" for name in sources if name != "lib")
    (directory / "lib.rs").write_text(declared + sources.pop("lib", ""))
    for name, text in sources.items():
        (directory / f"{name}.rs").write_text(text)
    return imports.crate(directory)


def names(circles):
    return [["::".join(module) for module in group] for group in circles]


@pytest.mark.parametrize(
    "back",
    [
        "use crate::a::A;",
        "use crate::{a::{A, B}, c};",
        "fn f() -> super::a::A { todo!() }",
        "use crate::A;",  # by way of the re-export
    ],
)
def test_circle_of_two_files_is_found(tmp_path, back):
    files = crate(tmp_path, lib="pub use a::A;", a="use crate::b::B;", b=back, c="")
    assert names(imports.circles(files)) == [["a", "b"]]


def test_circle_by_way_of_third_file_is_found(tmp_path):
    files = crate(tmp_path, a="use crate::b::B;", b="use crate::c::C;", c="use crate::a::A;")
    assert names(imports.circles(files)) == [["a", "b", "c"]]


def test_circle_of_parent_and_child_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "child.rs").write_text("use super::Shared;")
    files = crate(tmp_path, a="mod child;\nstruct Shared;\nfn f() { child::run() }")
    assert names(imports.circles(files)) == [["a", "a::child"]]


def test_chain_and_reexport_are_no_circle(tmp_path):
    files = crate(tmp_path, lib="pub use a::A;\npub use b::B;", a="use crate::B;", b="use std::fmt;")
    assert imports.circles(files) == []


def test_unit_tests_and_comments_do_not_count(tmp_path):
    tests = "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n"
    files = crate(tmp_path, a="use crate::b::B;", b=f"// crate::a::A\n{tests}")
    assert imports.circles(files) == []


@pytest.mark.parametrize("root", imports.roots(), ids=lambda root: root.parent.name)
def test_crate_has_no_import_circle(root):
    files = imports.crate(root)
    found = [[str(files[m].path.relative_to(root)) for m in group] for group in imports.circles(files)]
    assert found == []
