"""Every command of the README parses with its script's parser; environments and versions agree."""

import importlib
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from reproduce import update_readmes

ROOT = Path(__file__).parents[1]


READMES = ("README.md", "reproduce/README.md", "benchmarks/README.md")


def readme_commands(readme: str) -> list[list[str]]:
    """[launcher…, script, argument…] of every command that runs a script of ours."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / readme).read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    launchers = ("python", "torchrun", "accelerate")
    ours = [command for command in commands if command and command[0] in launchers]
    return [command for command in ours if command[1] != "-c"]


@pytest.mark.parametrize("readme", READMES)
def test_readme_commands_parse(readme):
    commands = readme_commands(readme)
    assert len(commands) >= 3
    for command in commands:
        place = next(i for i, word in enumerate(command) if word.endswith(".py"))
        script, arguments = command[place], command[place + 1 :]
        assert (ROOT / script).is_file(), script
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        module.parse_args(arguments)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("accelerate_configs/*.yaml")), ids=lambda p: p.stem
)
def test_launch_files_are_accelerates(path):
    """accelerate reads each of them (it refuses unknown keys), and the README shows its command."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.num_machines == 1
    assert f"--config_file accelerate_configs/{path.name} dpo.py" in path.read_text()
    assert f"accelerate_configs/{path.name}" in (ROOT / "README.md").read_text()


def test_pictures_and_files_of_the_readme_are_there():
    """Each picture shown, each link to a file, and each file named in the table, is in the checkout."""
    for name in READMES:
        text = (ROOT / name).read_text()
        links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
        for link in [x for x in links if not x.startswith("http")]:
            assert ((ROOT / name).parent / link).exists(), (name, link)
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    named = re.findall(r"^\| (`.*`) \|", readme, re.M)
    files = [name for cell in named for name in re.findall(r"`([\w./]+)`", cell)]
    assert len(shown) >= 2 and "dpo.py" in files
    for name in [*shown, *files]:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("readme", update_readmes.READMES)
def test_tables_of_the_readmes_are_those_of_the_result_files(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert "<!-- tables.py " in text
    assert update_readmes.updated(text) == text


def source_of(script: str) -> str:
    """A script, if one is named, with all that it may call."""
    files = [ROOT / script] if script else []
    return "".join(file.read_text() for file in [*files, *ROOT.glob("ranking/*/*.py")])


def test_every_flag_is_read():
    """No dead flags: each destination appears as args.<name> (or getattr) somewhere in the scripts."""
    scoring = (ROOT / "ranking/scoring/flags.py").read_text()
    for script, shared in (("calculate_calibration_metrics", scoring),
                           ("calculate_upper_bound_rlhf", scoring),
                           ("calculate_win_rate", ""), ("plot_results", "")):  # fmt: skip
        source = (ROOT / f"{script}.py").read_text() + shared
        for flag in re.findall(r'"--([a-z][a-z0-9-]*)"', source):
            name = flag.replace("-", "_")
            assert re.search(rf'args\.{name}\b|"{name}"', source + source_of("")), flag


def test_every_training_flag_is_read():
    """Each field that the training scripts add to TRL's is used somewhere in their source."""
    import dataclasses

    from dpo import DPODataArguments
    from sft import SFTDataArguments

    for script, kind in (("dpo", DPODataArguments), ("sft", SFTDataArguments)):
        source = source_of(f"{script}.py")
        for field in dataclasses.fields(kind):
            assert re.search(rf"args\.{field.name}\b|self\.{field.name}\b", source), field.name


@pytest.mark.parametrize("name", ["environment.yaml", "environment_dpo.yaml"])
def test_environment_files(name):
    environment = yaml.safe_load((ROOT / name).read_text())
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    for entry in pip:
        assert (ROOT / entry.removeprefix("-r ")).is_file()
    assert (
        f"conda env create -f {name} -n {environment['name']}" in (ROOT / "README.md").read_text()
    )


def test_installed_versions_are_the_pinned_ones():
    for name in ("requirements.txt", "requirements_dpo.txt"):
        for package, pinned in re.findall(r"^([\w-]+)==(\S+)", (ROOT / name).read_text(), re.M):
            assert version(package) == pinned
