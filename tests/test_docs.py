"""What the documentation says is so: commands, options, settings, files, tensors, links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from triton_repo.client import Status
from triton_repo.page_tensors import context_inputs
from triton_repo.tensors import ENSEMBLE, model_tensors
from workflow.cli import app
from workflow.config import CONFIG_FOLDER, Config, load_config
from workflow.features.spec import FeatureSpec
from workflow.schema import load_contract

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    path
    for pattern in ("*.md", "docker/*", "workflow/**/*.md", "triton_repo/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
MARKDOWN = [page for page in PAGES if page.suffix == ".md"]
PACKAGES = ("workflow", "models", "triton_repo")
SIM = load_contract(CONFIG_FOLDER / "sim.contract.toml")
MARQUEE: Any = typer.main.get_command(app)
VERBS: dict[str, Any] = MARQUEE.commands


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- commands ------------------------------------------------------------------------------------
def fenced(text: str, language: str) -> str:
    """All fenced blocks of a language, indented ones too, joined."""
    return "\n".join(re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S))


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every line of the bash blocks."""
    for page in MARKDOWN:
        block = fenced(page.read_text(encoding="utf-8"), "bash").replace("\\\n", " ")
        for line in filter(None, map(str.strip, block.splitlines())):
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield by_name(page), words


COMMANDS = list(commands())
OF_MARQUEE = [words[1:] for _, words in COMMANDS if words[0].rsplit("/", 1)[-1] == "marquee"]


def options(verb: Any) -> set[str]:
    return {name for param in verb.params for name in (*param.opts, "--help")}


def test_blocks_hold_only_programs_that_are_checked_here() -> None:
    known = {"marquee", ".venv/bin/marquee", "make", ".", "docker", "apt-get", "sh"}
    known |= {"python", ".venv/bin/python", "dask"}
    assert {words[0] for _, words in COMMANDS} <= known


@pytest.mark.parametrize("words", OF_MARQUEE, ids=" ".join)
def test_verb_and_options_exist(words: list[str]) -> None:
    if words == ["--help"]:
        return
    verb = VERBS[words[0]]
    known = options(verb)
    if words[0] in ("recommend", "page"):
        known |= {f"--{column.name}" for column in SIM.features("context")}
    if words[0] == "page":
        known |= {f"--{what}" for what in context_inputs(SIM)}
    used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert used <= known
    required = [p for p in verb.params if p.required]
    assert {max(p.opts, key=len) for p in required if p.param_type_name == "option"} <= used
    given = list(takewhile(lambda word: not word.startswith("-"), words[1:]))
    assert len(given) == sum(p.param_type_name == "argument" for p in required)


@pytest.mark.parametrize("words", OF_MARQUEE, ids=" ".join)
def test_settings_of_commands_are_accepted(words: list[str]) -> None:
    overrides = [value for name, value in zip(words, words[1:], strict=False) if name == "--set"]
    load_config("sim", None, overrides)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    shown = [words[1:] for _, words in COMMANDS if words[0] == "make"]
    shown += [[name] for name in re.findall(r"`make ([a-z-]+)`", README)]
    used = {word for words in shown for word in words if "=" not in word}
    assert {"demo", "test"} <= used <= targets


def test_scripts_exist() -> None:
    for _, words in COMMANDS:
        if words[0] in ("sh", "python", ".venv/bin/python"):
            script = next(word for word in words[1:] if word.endswith((".py", ".sh")))
            assert (ROOT / script).is_file(), words


def test_every_verb_is_documented() -> None:
    table = set(re.findall(r"^\| `marquee ([a-z-]+)`", README, re.M))
    assert table == VERBS.keys()


@pytest.mark.parametrize("name", VERBS)
def test_verb_has_help(name: str) -> None:
    verb = VERBS[name]
    text = verb.get_help(click.Context(verb, info_name=name))
    assert len((verb.help or "").split()) >= 4
    assert all(getattr(p, "help", None) for p in verb.params if p.param_type_name == "option")
    assert "--json" in text


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in VERBS)])
def test_help_runs(arguments: list[str]) -> None:
    assert run_marquee(arguments)[0].startswith("Usage: marquee")


def test_help_is_quick() -> None:
    """It takes three times what its own libraries take to import; numpy alone would add 1.5."""
    needed = [sys.executable, "-c", "import typer, rich.console, rich.progress, rich.table"]
    rounds = [(run_marquee(["--help"])[1], run_measured(needed)[1]) for _ in range(4)]
    took, libraries = map(min, zip(*rounds, strict=True))
    assert took <= 4 * libraries


def run_marquee(arguments: list[str]) -> tuple[str, float]:
    """(standard output, CPU seconds) of the installed command."""
    return run_measured([str(Path(sys.executable).with_name("marquee")), *arguments])


def run_measured(command: list[str]) -> tuple[str, float]:
    """(standard output, CPU seconds) of a command."""
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    after = os.times()
    used = after.children_user + after.children_system
    return done.stdout, used - before.children_user - before.children_system


# --- settings ------------------------------------------------------------------------------------
def sections() -> dict[str, set[str]]:
    """Section -> its keys, of every section of Config."""
    values = Config(dataset="sim").model_dump()
    return {name: set(keys) for name, keys in values.items() if isinstance(keys, dict)}


def mentioned_settings() -> set[tuple[str, str]]:
    known = "|".join(sections())
    found: set[tuple[str, str]] = set()
    for page in MARKDOWN:
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(rf"`({known})\.([a-z_]+|\*)`", text))
        found |= set(re.findall(rf"({known})\.([a-z_]+)=", text))
    return found


def test_mentioned_settings_exist() -> None:
    mentioned = mentioned_settings()
    assert mentioned
    wrong = {(a, b) for a, b in mentioned if b != "*" and b not in sections()[a]}
    assert not wrong


def test_defaults_are_as_documented() -> None:
    serving = Config(dataset="sim").serving
    assert f"`serving.default_top_k` ({serving.default_top_k})" in README
    assert f"`serving.num_candidates` ({serving.num_candidates})" in README


def test_the_settings_file_is_accepted(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(# my-settings\.toml.*?)```", README, re.S)
    assert len(blocks) == 1
    file = tmp_path / "my-settings.toml"
    file.write_text(blocks[0], encoding="utf-8")
    load_config("movielens-1m", file)


def test_the_contract_excerpt_is_the_example() -> None:
    """Each column line of the excerpt stands in the whole file."""
    excerpt = re.search(r"^ *name = \"ml-100k\"\n.*?```", README, re.M | re.S)
    assert excerpt
    example = (CONFIG_FOLDER / "examples" / "ml-100k.toml").read_text(encoding="utf-8")
    lines = [line.strip() for line in excerpt[0].splitlines() if line.strip().startswith("{")]
    assert lines and all(line in example for line in lines)


# --- tree ----------------------------------------------------------------------------------------
def tree() -> set[str]:
    """Paths of the annotated tree, with their folders; folders end in a slash."""
    block = next(
        b for b in re.findall(r"```text\n(.*?)```", README, re.S) if b.startswith("README.md")
    )
    paths: set[str] = set()
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        paths.add("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def files_of_packages() -> set[str]:
    """What the tree has to list: every file but those in configs/, templates/ and static/."""
    files = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            inside = set(path.relative_to(ROOT).parts[:-1])
            if path.is_file() and not inside & {"configs", "templates", "static", "__pycache__"}:
                files.add(by_name(path))
    return {file for file in files if not file.endswith("__init__.py")}


def test_the_tree_lists_every_file_of_the_packages() -> None:
    shown = {path for path in tree() if path.split("/")[0] in PACKAGES and path[-1] != "/"}
    assert shown == files_of_packages()


def test_the_tree_lists_the_top_level() -> None:
    shown = {path for path in tree() if path.count("/") <= path.endswith("/")}
    hidden = {path.name for path in ROOT.iterdir() if path.name.startswith(".")} - {".ci"}
    ignored = {"runs", *hidden}
    real = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in ROOT.iterdir()
        if path.name not in ignored and path.suffix != ".egg-info" and path.name != "__pycache__"
    }
    # An empty folder is not in a clone.
    assert {name for name in real if any_file(ROOT / name)} <= shown
    assert shown - {"runs/"} <= real


def any_file(path: Path) -> bool:
    return path.is_file() or any(child.is_file() for child in path.rglob("*"))


def test_folders_of_the_tree_exist() -> None:
    missing = {path for path in tree() if not (ROOT / path).exists()} - {"runs/"}
    assert not missing


# --- tensors -------------------------------------------------------------------------------------
def sim_tensors() -> Any:
    spec = FeatureSpec(
        features=(), num_users=1, num_videos=1, has_watch_time=True, history_length=1,
        session_length=1, session_gap_s=1, valid_from=0, test_from=0, last_event=0,
    )  # fmt: skip
    return model_tensors(SIM, spec, num_candidates=100, dim=64)[ENSEMBLE]


def test_the_tensor_table_is_what_is_exported() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (request|response)(, optional)? \| (\w+) \| \[(-?\d+)\]", README, re.M
    )
    shown = [(name, way, bool(opt), dtype, (int(dim),)) for name, way, opt, dtype, dim in rows]
    io = sim_tensors()
    real = [(t.name, "request", t.optional, t.dtype, t.dims) for t in io.inputs]
    real += [(t.name, "response", t.optional, t.dtype, t.dims) for t in io.outputs]
    assert shown == real


def test_status_codes_are_documented() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)`", README, re.M)
    assert {name: int(number) for number, name in rows} == {s.name: s.value for s in Status}


def test_the_client_example_is_python() -> None:
    example = fenced(README, "python")
    compile(example, "README.md", "exec")
    sent = dict(re.findall(r'tensor\("(\w+)", .*"(\w+)"\)', example))
    datatypes = {t.name: t.dtype.replace("STRING", "BYTES") for t in sim_tensors().inputs}
    assert sent.items() <= datatypes.items()


# --- text ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", MARKDOWN, ids=by_name)
def test_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_no_paths_of_one_machine_and_no_index_hosts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = r"(?<![\w.])/(?:home|root|work|Users|mnt|opt|var/tmp)/"
    hosts = r"pypi\.org|pythonhosted|ghcr\.io|docker\.io|quay\.io|--index-url|TODO-FIGURE"
    if page.suffix == ".md":  # an image can only be pulled by its whole name
        hosts += r"|nvcr\.io"
    assert re.findall(f"{paths}|{hosts}", text) == []


@pytest.mark.parametrize("page", MARKDOWN, ids=by_name)
def test_no_emoji(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall("[\U0001f000-\U0001faff\u2600-\u26ff]", text) == []
