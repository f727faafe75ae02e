"""Checks the templates against the schemas of their programs, the real command line, and security rules."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import typer
import yaml

from tests.faults.hosts import free_port

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
LAUNCHER = ("aws.yaml", "gcp.yaml", "onprem.yaml")
FILES = sorted(path for path in CLUSTERS.iterdir() if path.suffix in (".yaml", ".sh") or path.name == "Dockerfile")
DOCUMENT = CLUSTERS.parent / "docs" / "clusters.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_accepts_its_templates(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTERS / name).read_text()))
    validate_config(config)
    assert config["max_workers"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("available_node_types", "trainers", "resources"), {"GPU": "eight"}),
        (("available_node_types", "trainers", "label"), {"pool": "trainers"}),
        (("provider", "type"), None),
    ],
)
def test_the_launcher_refuses_mistakes(path: tuple[str, ...], value: object) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError, NotImplementedError)):
        validate_config(prepare_config(tree))


@pytest.mark.slow
def test_aws_accepts_every_node_type() -> None:
    """Validates RunInstances with botocore's model. Ray resolves SubnetIds and adds the counts before the call."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    operation = ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model("RunInstances")
    tree = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    for name, kind in tree["available_node_types"].items():
        request = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        request["SubnetId"] = request.pop("SubnetIds")[0]
        report = ParamValidator().validate(request, operation.input_shape)
        assert not report.has_errors(), (name, report.generate_report())
        request["InstanceMarketOptions"] = {"MarketTyp": "spot"}
        assert ParamValidator().validate(request, operation.input_shape).has_errors()


def commands(text: str) -> Iterator[list[str]]:
    """Every `sepscene ...` command in a file, as words: comments and quotes removed, continued lines joined."""
    joined = re.sub(r"\\\n\s*(#\s*)?", " ", text)
    for line in joined.splitlines():
        for match in re.finditer(r"(?:^|&& |; |`|# +|-- +|^ *)(sepscene (?!on\b|under\b|with\b)[a-z].*)", line.strip()):
            command = re.split(r"`| #|\s+&&|\s+\|\|?\s| : |; |\s+&$|\s+\"\$\{@", match[1])[0]
            words = shlex.split(command.strip("'\""))
            if not {"...", "…"} & set(words):
                yield words


def sources() -> Iterator[tuple[str, list[str]]]:
    for path in [*FILES, DOCUMENT]:
        text = path.read_text()
        if path.name == "rayjob.yaml":
            yield path.name, shlex.split(yaml.safe_load(text)["spec"]["entrypoint"])
        for words in commands(text):
            yield path.name, words


def test_there_are_commands_to_parse() -> None:
    found = [name for name, _ in sources()]
    assert {
        "aws.yaml",
        "gcp.yaml",
        "onprem.yaml",
        "raycluster.yaml",
        "rayjob.yaml",
        "slurm.sh",
        "skypilot.yaml",
    } <= set(found)
    assert len(found) >= 18


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), list(sources()), ids=lambda value: value if isinstance(value, str) else None
)
def test_the_command_line_accepts_every_command(name: str, words: list[str]) -> None:
    from sepscene.orchestration.cli.main import app
    from sepscene.orchestration.cli.submission import submission_of

    command = typer.main.get_command(app)
    context = typer.Context(command)
    rest = words[1:]
    while hasattr(command, "resolve_command"):
        _, command, rest = command.resolve_command(context, rest)
        context = typer.Context(command, parent=context)
    if rest and rest != ["--help"]:  # otherwise only the command's name is mentioned
        given = command.make_context(words[1], list(rest)).params
        if words[1] == "submit":
            submission_of(typer.main.get_command(app), given["words"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_template_listens_on_all_interfaces_or_contains_a_secret(path: Path) -> None:
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert "::/0" not in text
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20}|ghp_[A-Za-z0-9]{20}", text)
    assert not re.search(r"(?i)(password|token|secret)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{16}", text)


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_starts_with_a_token_and_its_dashboard_on_loopback(name: str) -> None:
    tree = yaml.safe_load((CLUSTERS / name).read_text())
    head = tree["head_start_ray_commands"][-1]
    worker = tree["worker_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert any(target.endswith(".ray/auth_token") for target in tree["file_mounts"])
    assert {".env", ".git", "runs", ".venv"} <= set(tree["rsync_exclude"])


def test_the_clouds_use_closed_security_groups() -> None:
    """Without one, Ray opens port 22 to the internet on AWS; GCP's network `default` opens it as well."""
    aws, gcp = (yaml.safe_load((CLUSTERS / name).read_text()) for name in ("aws.yaml", "gcp.yaml"))
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in aws["available_node_types"].values())
    assert all(
        kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        for kind in aws["available_node_types"].values()
    )
    for kind in gcp["available_node_types"].values():
        assert all("SUBNET" in interface["subnetwork"] for interface in kind["node_config"]["networkInterfaces"])


def test_heads_are_on_demand_and_separators_on_spot() -> None:
    aws, gcp = (
        yaml.safe_load((CLUSTERS / name).read_text())["available_node_types"] for name in ("aws.yaml", "gcp.yaml")
    )
    assert "InstanceMarketOptions" not in aws["head"]["node_config"] and "scheduling" not in gcp["head"]["node_config"]
    assert aws["separators"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gcp["separators"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"


@pytest.mark.parametrize("name", ["slurm.sh", "mlflow.sh"])
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTERS / name)], check=True)


def test_shell_commands_in_the_other_templates_are_bash() -> None:
    sky = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    texts = [sky["setup"], sky["run"]]
    for name in LAUNCHER:
        tree = yaml.safe_load((CLUSTERS / name).read_text())
        for key in (
            "setup_commands",
            "initialization_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        ):
            texts += tree.get(key, [])
    subprocess.run(["bash", "-n"], input="\n".join(texts), text=True, check=True)


def test_the_pool_of_an_onprem_machine_depends_on_its_address() -> None:
    """Runs the real shell line, with a `hostname` that returns each machine's address, and `echo` in place of Ray."""
    tree = yaml.safe_load((CLUSTERS / "onprem.yaml").read_text())
    line = tree["worker_start_ray_commands"][-1].replace("~/sepscene-env/bin/ray", "echo")
    for address in tree["provider"]["worker_ips"]:
        script = f"hostname() {{ echo '{address} 172.17.0.1 '; }}; ulimit() {{ :; }}; {line}"
        words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
        assert f"--labels=pool={'trainers' if '.2' in address[-4:] else 'separators'}" in words, address
    assert "--labels=pool=head" in tree["head_start_ray_commands"][-1]


def test_images_and_drivers_match_the_pinned_packages() -> None:
    """CUDA 13 needs driver 580; Ray's image must contain the pinned version of Ray."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pinned["cuda-toolkit"].startswith("13.0")
    least_driver = 580
    drivers = {}
    for path in FILES:
        text = path.read_text()
        for ray_version in re.findall(r"rayproject/ray:([\d.]+)|rayVersion: \"([\d.]+)\"", text):
            assert "".join(ray_version) == pinned["ray"], path.name
        drivers[path.name] = [int(found) for found in re.findall(r"(?:nvidia-|[Dd]river )(\d{3})\b", text)]
        assert all(driver >= least_driver for driver in drivers[path.name]), path.name
    assert all(
        drivers[name]
        for name in ("aws.yaml", "gcp.yaml", "onprem.yaml", "raycluster.yaml", "rayjob.yaml", "skypilot.yaml")
    )


def test_developer_tools_are_not_in_the_users_constraints() -> None:
    names = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    tools = {line.split("==")[0] for line in (ROOT / "constraints-dev.txt").read_text().splitlines() if "==" in line}
    assert not names & tools and {"pytest", "ruff", "mypy", "moto", "botocore"} <= tools
    assert not [path.name for path in FILES if re.search("s3fs|gcsfs", path.read_text())]  # nothing imports them


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shared_mlflow_requires_a_password_and_its_own_host_name(tmp_path: Path) -> None:
    """Runs the real script and server: 401 without the password, 403 with another host name, private files."""
    password = "a-password-of-the-test"
    port = free_port()
    server = subprocess.Popen(
        ["bash", str(CLUSTERS / "mlflow.sh")],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SEPSCENE_MLFLOW_PORT": str(port),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-the-test",
        },
        stdout=(tmp_path / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search"
    question = {"max_results": 1}
    admin = ("admin", password)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                anonymous = requests.post(url, json=question, timeout=60)
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(1)
        assert anonymous.status_code == 401
        assert requests.post(url, json=question, auth=("admin", "guess"), timeout=60).status_code == 401
        assert requests.post(url, json=question, auth=admin, timeout=60).status_code == 200
        foreign = requests.post(url, json=question, auth=admin, headers={"Host": "evil.example"}, timeout=60)
        assert foreign.status_code == 403
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    for name in (".mlflow/credentials", "mlflow/auth.ini", "mlflow/users.db"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, name
    assert password not in (tmp_path / "log").read_text()
    assert password not in (tmp_path / "mlflow" / "auth.ini").read_text()


def test_a_head_whose_ray_does_not_start_ends_skypilots_job(tmp_path: Path) -> None:
    programs = tmp_path / "sepscene-env" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "ray").write_text("#!/bin/bash\nexit 3\n")
    (programs / "ray").chmod(0o755)
    lines = yaml.safe_load((ROOT / "clusters" / "skypilot.yaml").read_text())["run"]
    variables = {"SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_NODE_RANK": "0", "EXPERIMENT": "x", "RUN_ID": "y"}
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **variables}
    assert subprocess.run(["bash", "-c", lines], env=environment, timeout=60).returncode == 1
