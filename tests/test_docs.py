"""The pages say what is there: links, files, modules, configs, flags of commands."""

import ast
import dataclasses
import functools
import importlib
import re
import shlex
import types
import typing
from pathlib import Path

import pytest
import yaml

from e5jax import config as configs
from e5jax.synthetic import config as synthetic_configs


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FILES = ["README.md", *(f"docs/{page}" for page in PAGES)]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MODULE = re.compile(r"-m (e5jax\.\w+|benchmarks\.\w+)")
CONFIG = re.compile(r"(?:configs|examples|launch)/[\w/]+\.(?:py|json|sh|sbatch)")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")
# What the command's own parser takes, beside its fields.
EVERYWHERE = {"config", "help"}
COMMANDS = {
    "train": configs.TrainConfig,
    "encode": configs.EncodeConfig,
    "mine": configs.MineConfig,
    "public": configs.PublicConfig,
    "contamination": configs.ContaminationConfig,
    "evaluate": configs.EvaluateConfig,
    "export": configs.ExportConfig,
    "merge": configs.MergeConfig,
    "experiments": configs.ExperimentsConfig,
    "synthesize": synthetic_configs.SynthesizeConfig,
    "package": synthetic_configs.PackageConfig,
    "checkpoint": None,
}


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def prose(text: str) -> str:
    return FENCED.sub("", text)


def nav(entries) -> list[str]:
    """The pages of a nav, in order."""
    found = []
    for entry in entries:
        for page in entry.values() if isinstance(entry, dict) else [entry]:
            found += [page] if isinstance(page, str) else nav(page)
    return found


def anchors(text: str) -> set[str]:
    """Of the headings, as mkdocs makes them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


@functools.cache
def flags(config: type) -> frozenset[str]:
    """The names of a config's fields on the command line; what stands in a tuple is asked for by number."""
    found = set()
    hints = typing.get_type_hints(config, include_extras=False)
    for field in dataclasses.fields(config):
        name, hint = field.name.replace("_", "-"), hints[field.name]
        found |= {name, f"no-{name}"} if hint is bool else {name}
        for inner, prefix in inner_configs(hint, name):
            found |= {f"{prefix}.{flag}" for flag in flags(inner)}
    return frozenset(found)


def inner_configs(hint, prefix: str) -> list[tuple[type, str]]:
    """(dataclass, the prefix of its fields) of all that a hint allows."""
    if dataclasses.is_dataclass(hint):
        return [(hint, prefix)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [found for part in typing.get_args(hint) for found in inner_configs(part, prefix)]
    if typing.get_origin(hint) is tuple:
        return [found for part in typing.get_args(hint) for found in inner_configs(part, f"{prefix}.N")]
    return []


def known(flag: str, config: type) -> bool:
    numbered = re.sub(r"\.\d+(?=\.|$)", ".N", flag)
    return numbered in EVERYWHERE | flags(config)


def command_lines(text: str) -> list[tuple[str, list[str]]]:
    """(command of e5jax, its words) of every line that is one, in blocks and in `code`."""
    blocks = [body for _, body in FENCED.findall(text)]
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()] + inline
    found = []
    for line in lines:
        for part in re.split(r"\s(?:&&|\|)\s", re.sub(r"\s+", " ", line)):
            if match := re.search(r"-m e5jax\.(\w+)(.*)", part):
                found.append((match[1], shlex.split(match[2], comments=True)))
    return found


def test_the_nav_and_the_folder_have_the_same_pages():
    listed = nav(SITE["nav"])
    assert sorted(listed) == PAGES and len({*listed}) == len(listed)


def test_every_command_has_a_page_and_a_line_on_the_first():
    sources = (ROOT / "e5jax").glob("*.py")
    names = {path.stem for path in sources if re.search(r"^def main\(argv", path.read_text(), re.M)}
    assert names == {*COMMANDS}
    assert {Path(page).stem for page in PAGES if page.startswith("commands/")} == names
    assert names == {module for module in re.findall(r"python -m e5jax\.(\w+)", text_of("docs/index.md"))}


def test_the_site_asks_no_other_host_for_fonts_or_scripts():
    assert SITE["theme"]["font"] is False
    assert not {"extra", "extra_css", "extra_javascript"} & {*SITE}


@pytest.mark.parametrize("file", FILES)
def test_relative_links_lead_to_files_and_headings(file):
    text = text_of(file)
    for target in LINK.findall(prose(text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / file).parent / path if path else ROOT / file
        assert there.exists(), f"{file}: {target}"
        if file.startswith("docs/"):
            assert there.resolve().is_relative_to(DOCS), f"{file}: {target} is outside the site"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{file}: {target}"


@pytest.mark.parametrize("file", FILES)
def test_modules_that_are_run_have_a_main(file):
    for module in {*MODULE.findall(text_of(file))}:
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file(), f"{file}: {module}"
        assert 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"), f"{file}: {module} has no main"


@pytest.mark.parametrize("file", FILES)
def test_configs_and_scripts_that_are_named_exist(file):
    for name in {*CONFIG.findall(text_of(file))} - {"configs/x.py"}:
        assert (ROOT / name).is_file(), f"{file}: {name}"


@pytest.mark.parametrize("file", FILES)
def test_flags_of_our_commands_are_fields_of_their_configs(file):
    for command, words in command_lines(text_of(file)):
        assert command in COMMANDS, f"{file}: {command}"
        given = [match[1] for word in words if (match := FLAG.match(word))]
        if (config := COMMANDS[command]) is None:
            assert not given, f"{file}: {command} {given}"
            continue
        unknown = [flag for flag in given if not known(flag, config)]
        assert not unknown, f"{file}: python -m e5jax.{command} --{unknown[0]}"


@pytest.mark.parametrize("file", FILES)
def test_flags_in_the_text_are_fields_of_some_command(file):
    every = frozenset().union(*(flags(config) for config in COMMANDS.values() if config is not None)) | EVERYWHERE
    others = {"spare"}
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text_of(file))):
        if re.search(r"benchmarks|launch/|-m e5jax|sha256sum", code):
            continue
        for flag in FLAG.findall(code):
            assert re.sub(r"\.\d+(?=\.|$)", ".N", flag) in every | others, f"{file}: --{flag}"


@pytest.mark.parametrize("file", FILES)
def test_configs_in_the_pages_can_be_made(file):
    for kind, body in FENCED.findall(text_of(file)):
        if kind == "python" and "def get_config()" in body:
            names: dict = {}
            exec(compile(body, file, "exec"), names)
            assert dataclasses.is_dataclass(names["get_config"]())


@pytest.mark.parametrize("file", FILES)
def test_python_in_the_pages_parses(file):
    for kind, body in FENCED.findall(text_of(file)):
        if kind == "python":
            ast.parse(body)


def test_fields_in_the_tables_of_the_commands_exist():
    """`packing.memory_gb`, the first cell of a row, under "Fields that matter"."""
    for command, config in COMMANDS.items():
        if config is None:
            continue
        text = text_of(f"docs/commands/{command}.md")
        tables = re.findall(r"^\| field \|.*?(?=\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        assert tables or command == "mine"  # its page is about limits, by flag
        for row in "\n".join(tables).splitlines()[2:]:
            for name in re.findall(r"`(\w[\w.]*)`", row.split("|")[1]):
                assert known(name.replace("_", "-"), config), f"{command}: {name}"


def test_importlib_finds_what_the_pages_import():
    """`from e5jax.x import Y` in a page."""
    for file in FILES:
        for kind, body in FENCED.findall(text_of(file)):
            if kind != "python":
                continue
            for node in ast.walk(ast.parse(body)):
                if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "e5jax":
                    module = importlib.import_module(node.module)
                    for alias in node.names:
                        inner = (ROOT / "e5jax" / f"{alias.name}.py").is_file()
                        assert hasattr(module, alias.name) or inner, f"{file}: {node.module}.{alias.name}"
