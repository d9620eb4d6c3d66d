"""The set-up script: its decisions, tried with stand-ins for every program that would change the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "setup.sh"
# The text tools that the script itself is made of; everything else on its PATH is a stand-in.
TOOLS = "awk bash cat chmod cmp cp dirname env flock grep head id mkdir mv rm sed sh sha256sum sleep tail".split()  # noqa: SIM905

DEB822 = """\
# A comment
Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
# another comment
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
"""
STANZA = "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n"
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb http://security.example/debian-security bookworm-security main
deb-src http://sources.example/debian bookworm main
deb [ arch=amd64 signed-by=/usr/share/keyrings/x.gpg ] https://mirror.example/debian bookworm main contrib # why
deb http://second.example/debian bookworm main
"""


class Machine:
    """A pretended machine: a source tree, a PATH of stand-ins, a folder for /etc, and a record of what was called."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.bin, self.system = folder / "the tree", folder / "bin", folder / "system"
        self.calls_file = folder / "calls"
        for path in (self.tree / "scripts", self.bin, self.system / "etc/apt/sources.list.d"):
            path.mkdir(parents=True)
        for name in ("scripts/setup.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.tree / name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool} here"))
        self.environment = {"PATH": str(self.bin), "CCG_SYSROOT": str(self.system), "HOME": str(folder), "CCG_UID": "0"}
        self.write("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")

    def write(self, name: str, text: str) -> None:
        (self.system / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.system / name).read_text()

    def program(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.write_text(f'#!{self.bin}/bash\nprintf "%s\\n" "{name} $*" >>"{self.calls_file}"\n{body}\n')
        path.chmod(0o755)
        return path

    def gmx(self, version: str) -> Path:
        return self.program("gmx", f"echo 'GROMACS version:     {version}'")

    def apt(self, *, installs: str, candidate: str) -> None:
        """An apt whose plain suite has ``candidate`` and whose install puts ``installs`` on PATH."""
        self.program("apt-cache", f"[ -z \"$2\" ] || echo '  Candidate: {candidate}'")
        new = f"printf '%s\\n' '#!{self.bin}/bash' \"echo 'GROMACS version: {installs}'\" >{self.bin}/gmx.new"
        put = f"{new}; chmod +x {self.bin}/gmx.new; mv -f {self.bin}/gmx.new {self.bin}/gmx"
        self.program("apt-get", f'case " $* " in *" install "*gromacs*) {put};; esac')

    def python(self) -> None:
        """A python3 whose venv holds a copy of itself and whose pip puts ``ccg`` there."""
        body = """
case "$*" in
*"-m venv"*) d="${@: -1}"; mkdir -p "$d/bin"; cp "$0" "$d/bin/python" ;;
*"pip install"*) printf x >"${0%/*}/ccg"; chmod +x "${0%/*}/ccg" ;;
*"version_info[:2]"*) echo python 3.11 ;;
*--version*) echo Python 3.11.0 ;;
esac"""
        self.program("python3", body)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._bash([str(self.tree / "scripts/setup.sh"), *arguments], environment)

    def call(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Source the script and run ``code`` with its functions."""
        return self._bash(["-c", f'source "{self.tree}/scripts/setup.sh"; {code}'], environment)

    def _bash(self, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "bash"), *arguments]
        env = {**self.environment, **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def installs(self) -> list[str]:
        return [call for call in self.calls if call.startswith("apt-get") and " install " in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", ["scripts/setup.sh", ".ci/run"])
def test_scripts_are_valid_bash_and_executable(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0
    assert os.access(ROOT / script, os.X_OK)


def test_nothing_is_installed_when_gmx_is_there(machine: Machine) -> None:
    machine.gmx("2025.2-Debian_2025.2_1")
    machine.apt(installs="2025.2", candidate="2025.2-1")
    done = machine.call("ensure_gmx")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"GROMACS 2025: {machine.bin}/gmx" in done.stdout
    assert not [call for call in machine.calls if call.startswith("apt")]


@pytest.mark.parametrize("of_program", [False, True])
def test_gmxbin_is_used_first(machine: Machine, tmp_path: Path, of_program: bool) -> None:
    machine.gmx("2022.5")
    folder = tmp_path / "other bin"
    folder.mkdir()
    shutil.copy(machine.gmx("2026.1-dev"), folder / "gmx")
    machine.gmx("2022.5")
    done = machine.call("ensure_gmx", GMXBIN=str(folder / "gmx" if of_program else folder))
    assert done.returncode == 0, done.stderr
    assert f"GROMACS 2026: {folder}/gmx" in done.stdout


@pytest.mark.parametrize(
    ("version", "state"),
    [(None, "no gmx on PATH"), ("2022.5-Debian_2022.5_2", "is GROMACS 2022"), ("unknown", "does not run")],
)
def test_without_root_the_message_names_conda(machine: Machine, version: str | None, state: str) -> None:
    if version:
        machine.gmx(version)
    machine.apt(installs="2025.2", candidate="2025.2-1")
    done = machine.run(CCG_UID="1000")
    assert done.returncode == 2
    assert state in done.stderr
    assert 'conda install -c conda-forge "gromacs>=2025"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not machine.installs()


def test_without_apt_the_message_names_conda(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 2
    assert "no apt-get here" in done.stderr
    assert "conda" in done.stderr


def test_apt_can_be_forbidden(machine: Machine) -> None:
    machine.apt(installs="2025.2", candidate="2025.2-1")
    done = machine.run(CCG_NO_APT="1")
    assert done.returncode == 2
    assert not machine.calls


def test_sudo_without_password_is_used(machine: Machine) -> None:
    machine.apt(installs="2025.2", candidate="2025.2-1")
    machine.program("sudo", 'shift; "$@"')
    done = machine.call("ensure_gmx", CCG_UID="1000")
    assert done.returncode == 0, done.stderr
    assert any(call.startswith("sudo -n env DEBIAN_FRONTEND=noninteractive") for call in machine.calls)


def test_debian_13_takes_its_own_gromacs(machine: Machine) -> None:
    machine.apt(installs="2025.2", candidate="2025.2-1")
    done = machine.call("ensure_gmx")
    assert done.returncode == 0, done.stderr
    assert [" -t " in call for call in machine.installs()] == [False]
    assert not list((machine.system / "etc/apt/sources.list.d").iterdir())


def test_debian_12_adds_the_next_suite_at_low_priority(machine: Machine) -> None:
    machine.gmx("2022.5")
    machine.apt(installs="2025.2", candidate="2022.5-2")
    machine.write("etc/apt/sources.list.d/debian.sources", DEB822)
    (machine.system / "usr/share/keyrings").mkdir(parents=True)
    machine.write("usr/share/keyrings/debian-archive-keyring.gpg", "")
    done = machine.call("ensure_gmx")
    assert done.returncode == 0, done.stderr
    assert machine.read("etc/apt/sources.list.d/ccg-trixie.sources").splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: trixie",
        "Components: main",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]
    assert machine.read("etc/apt/preferences.d/ccg-trixie").splitlines() == [
        "Package: *",
        "Pin: release n=trixie",
        "Pin-Priority: 50",
    ]
    assert [" -t trixie gromacs" in call for call in machine.installs()] == [True]


def test_a_suite_that_is_there_is_not_added_again(machine: Machine) -> None:
    machine.apt(installs="2025.2", candidate="2022.5-2")
    policy = "     release v=13.7,o=Debian,a=stable,n=trixie,l=Debian,c=main,b=amd64"
    machine.program("apt-cache", f"if [ -z \"$2\" ]; then echo '{policy}'; else echo '  Candidate: 2022.5-2'; fi")
    done = machine.call("ensure_gmx")
    assert done.returncode == 0, done.stderr
    assert not list((machine.system / "etc/apt/sources.list.d").iterdir())
    assert " -t trixie gromacs" in machine.installs()[0]


def test_other_systems_get_no_debian_suite(machine: Machine) -> None:
    machine.write("etc/os-release", "ID=ubuntu\nID_LIKE=debian\n")
    machine.apt(installs="2025.2", candidate="2023.3-1")
    done = machine.run()
    assert done.returncode == 2
    assert "this system's apt has 2023" in done.stderr
    assert not machine.installs()


def test_an_old_gmx_that_hides_the_new_one_is_told(machine: Machine) -> None:
    machine.gmx("2021.1")
    machine.apt(installs="2021.1", candidate="2025.2-1")
    done = machine.run()
    assert done.returncode == 2
    assert "GMXBIN=/usr/bin" in done.stderr


@pytest.mark.parametrize(
    ("files", "uris"),
    [
        ({"sources.list.d/debian.sources": DEB822}, "http://mirror.example/debian"),
        ({"sources.list": ONE_LINE}, "https://mirror.example/debian"),
        ({"sources.list.d/debian.list": ONE_LINE}, "https://mirror.example/debian"),
        ({"sources.list.d/debian.sources": DEB822.replace("\n", "\r\n")}, "http://mirror.example/debian"),
        (
            {"sources.list.d/a.sources": STANZA.format("mirror+file:/etc/apt/m.list", "stable")},
            "mirror+file:/etc/apt/m.list",
        ),
        (
            {
                "sources.list": ONE_LINE,
                "sources.list.d/a.sources": "Enabled: no\n" + DEB822.partition("\n\n")[2],
                "sources.list.d/other.sources": STANZA.format("http://other.example", "nodistro"),
            },
            "https://mirror.example/debian",
        ),
        ({"sources.list": "deb http://security.example/debian-security bookworm-security main\n"}, None),
        ({}, None),
    ],
    ids=["deb822", "one-line", "one-line-in-d", "crlf", "mirror-list", "disabled", "security-only", "none"],
)
def test_the_archive_is_read_from_apts_sources(machine: Machine, files: dict[str, str], uris: str | None) -> None:
    for name, text in files.items():
        machine.write(f"etc/apt/{name}", text)
    done = machine.call("debian_uris")
    assert (done.returncode, done.stdout.strip()) == ((1, "") if uris is None else (0, uris))


def test_the_second_set_up_installs_nothing(machine: Machine) -> None:
    machine.gmx("2025.2")
    machine.python()
    first = machine.run()
    assert first.returncode == 0, first.stderr
    pip = [call for call in machine.calls if "pip install" in call]
    assert len(pip) == 1
    assert pip[0].endswith("-c constraints.txt -e .[test]")
    second = machine.run()
    assert "up to date" in second.stdout
    assert [call for call in machine.calls if "pip install" in call] == pip


@pytest.mark.parametrize("event", ["settings", "moved", "killed", "broken", "dev"])
def test_what_changed_is_set_up_again(machine: Machine, event: str) -> None:
    machine.gmx("2025.2")
    machine.python()
    assert machine.run().returncode == 0
    old = machine.tree / ".venv" / "old"
    old.touch()
    if event == "settings":
        (machine.tree / "pyproject.toml").write_text("# new\n")
    elif event == "moved":
        machine.tree = machine.tree.rename(machine.tree.with_name("moved"))
    elif event == "killed":
        (machine.tree / ".ccg_setup_unfinished").touch()
    elif event == "broken":
        (machine.tree / ".venv/bin/python").unlink()
    done = machine.run(*(["--dev"] if event == "dev" else []))
    assert done.returncode == 0, done.stderr
    assert "installing Python packages" in done.stdout
    # Only these two can go on with the packages that are there.
    assert (machine.tree / ".venv/old").exists() == (event in {"settings", "dev"})
    # The developers' environment serves the tests too.
    assert "up to date" in machine.run().stdout


def test_two_set_ups_at_once_do_the_work_once(machine: Machine) -> None:
    machine.gmx("2025.2")
    machine.python()
    python = machine.bin / "python3"
    python.write_text(python.read_text().replace('*"-m venv"*) ', '*"-m venv"*) sleep 1; '))
    command = [str(machine.bin / "bash"), str(machine.tree / "scripts/setup.sh")]
    both = [subprocess.Popen(command, env=machine.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len([call for call in machine.calls if "pip install" in call]) == 1
    assert sum("waiting" in output for output in outputs) == 1


def test_python_that_is_too_old_or_missing_is_told(machine: Machine) -> None:
    machine.gmx("2025.2")
    machine.program("python3", "exit 1")
    done = machine.run()
    assert done.returncode == 2
    assert "no Python >= 3.11" in done.stderr


def test_a_failed_install_shows_its_end_and_is_tried_again(machine: Machine) -> None:
    machine.gmx("2025.2")
    machine.python()
    python = machine.bin / "python3"
    good = python.read_text()
    python.write_text(good.replace('*"pip install"*) ', '*"pip install"*) echo no route; exit 1; '))
    done = machine.run()
    assert done.returncode == 1
    assert "no route" in done.stderr
    assert "pip could not install" in done.stderr
    (machine.tree / ".venv/bin/python").write_text(good)
    assert machine.run().returncode == 0


def test_unknown_options_are_refused(machine: Machine) -> None:
    done = machine.run("--frobnicate")
    assert done.returncode == 2
    assert "--frobnicate" in done.stderr


def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # Put together here, so that this file does not hold them.
    dot = "."
    words = [
        f"{a}{dot}{b}" for a, b in (("pypi", "org"), ("debian", "org"), ("pythonhosted", "org"), ("anaconda", "org"))
    ]
    words += [f"{a}{dot}{b}" for a, b in (("download.pytorch", "org"), ("conda.anaconda", "org"), ("ubuntu", "com"))]
    words += [f"/{a}/{b}" for a, b in (("work", "main"), ("work", "shared"), ("opt", "wheels"), ("root", dot))]
    command = [
        "git",
        "-C",
        str(ROOT),
        "grep",
        "-I",
        "-n",
        "-i",
        "-F",
        *(part for word in words for part in ("-e", word)),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout + found.stderr
