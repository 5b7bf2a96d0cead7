"""What cannot run here is held against the published schemas, and against our own rules."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from ebm_dist import errors
from tests.helpers import ROOT

KUBERNETES = "1.31"
INFRA = ROOT / "infra"
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
KUBERAY = json.loads((ROOT / "tests/infra/kuberay-1.7.0.json").read_text())
BIN = Path(sys.executable).parent


def documents(path):
    return [
        json.loads(json.dumps(document))
        for document in YAML(typ="safe", pure=True).load_all(path.read_text())
    ]


DOCUMENTS = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}-{i}")
    for path in MANIFESTS
    for i, document in enumerate(documents(path))
]


def pods(document):
    """Every pod template in a document."""
    keys = ("template", "submitterPodTemplate")
    found = [document[key] for key in keys if isinstance(document.get(key), dict)]
    for value in document.values():
        for entry in value if isinstance(value, list) else [value]:
            found += pods(entry) if isinstance(entry, dict) else []
    return found


def validate(document):
    """Raises where a document does not fit its published schema."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, KUBERAY)
    for template in pods(document):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod"} | template.get("metadata", {}),
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_manifests_fit_the_published_schemas(document):
    validate(document)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("rayStartParams", "rayStartParam"),
        ("workerGroupSpecs", "workerGroups"),
        ("authOptions: {mode: token}", "authOptions: {mode: tokens}"),
        ("maxReplicas: 4", "maxReplicas: four"),
        ("terminationGracePeriodSeconds", "terminationGracePeriod"),
        ("capabilities: {drop: [ALL]}", "capabilities: {drops: [ALL]}"),
        ("maxUnavailable", "maxUnavailables"),
        ("podSelector: {matchLabels: {app: ebm}}", "podSelectors: {matchLabels: {app: ebm}}"),
    ],
)
def test_a_slip_is_noticed(right, wrong, tmp_path):
    text = (INFRA / "kuberay/cluster.yaml").read_text()
    assert right in text
    path = tmp_path / "broken.yaml"
    path.write_text(text.replace(right, wrong))
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        [validate(document) for document in documents(path)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pods_are_locked_down_and_have_time_for_a_checkpoint(document):
    for template in pods(document):
        spec = template["spec"]
        assert (
            spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] >= 1000
        )
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["terminationGracePeriodSeconds"] >= 60
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"requests", "limits"} <= container["resources"].keys() and not container[
                "image"
            ].endswith("latest")
            secret = re.compile("KEY|SECRET|PASSWORD|TOKEN")
            plain = [
                e["name"]
                for e in container.get("env", [])
                if "value" in e and secret.search(e["name"])
            ]
            assert not plain, f"secrets in plain text: {plain}"


def test_every_ray_cluster_asks_for_a_token():
    clusters = [d for path in MANIFESTS for d in documents(path) if d["apiVersion"] == "ray.io/v1"]
    specs = [d["spec"].get("rayClusterSpec", d["spec"]) for d in clusters]
    assert len(specs) == 2 and all(spec["authOptions"] == {"mode": "token"} for spec in specs)


def test_only_the_head_that_scales_its_cluster_has_a_token_of_the_api_server():
    with_token = [
        (path.stem, template["metadata"]["labels"])
        for path in MANIFESTS
        for document in documents(path)
        for template in pods(document)
        if template["spec"].get("automountServiceAccountToken", True)
    ]
    assert with_token == [("cluster", {"app": "ebm", "role": "head"})]


def matches(peer, end):
    """Whether a peer of a rule is an end: labels of a pod and its namespace, or an address."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return "address" in end and not any(
            ip_address(end["address"]) in ip_network(part) for part in block.get("except", [])
        )
    if "address" in end:
        return False
    namespace = peer.get("namespaceSelector", {"matchLabels": {"name": "ebm"}})
    namespace = namespace.get("matchLabels", {})
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return labels.items() <= end["labels"].items() and all(
        value == end["namespace"] for value in namespace.values()
    )


def is_allowed(policies, source, target, port, protocol="TCP"):
    """Whether the policies of both ends let a connection pass."""
    for end, other, kind, peers in (
        (source, target, "Egress", "to"),
        (target, source, "Ingress", "from"),
    ):
        selecting = [
            policy["spec"]
            for policy in policies
            if kind in policy["spec"]["policyTypes"]
            and end.get("namespace") == "ebm"
            and policy["spec"]["podSelector"]["matchLabels"].items() <= end["labels"].items()
        ]
        rules = [rule for spec in selecting for rule in spec.get(kind.lower(), [])]
        if selecting and not any(
            any(matches(peer, other) for peer in rule[peers])
            and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
            for rule in rules
        ):
            return False
    return True


@pytest.mark.parametrize(
    "files", [("cluster", "submit"), ("rayjob", "rayjob-network")], ids=" and ".join
)
def test_who_reaches_whom(files):
    listed = [d for name in files for d in documents(INFRA / f"kuberay/{name}.yaml")]
    policies = [d for d in listed if d["kind"] == "NetworkPolicy"]

    def pod(labels, namespace="ebm"):
        return {"labels": labels, "namespace": namespace}

    templates = [pod(t["metadata"]["labels"]) for d in listed for t in pods(d)]
    submitter = next(end for end in templates if end["labels"]["app"].endswith("submit"))
    head = next(end for end in templates if end["labels"].get("role") == "head")
    worker = next(end for end in templates if end["labels"].get("role") == "worker")
    stranger = pod({"app": "else"})
    dns, operator = pod({}, "kube-system"), pod({}, "kuberay-system")
    metadata, store = {"address": "169.254.169.254"}, {"address": "192.0.2.7"}
    for port in (6379, 8265, 10001, 41234):
        assert is_allowed(policies, worker, head, port)
        assert is_allowed(policies, head, worker, port)
        assert not is_allowed(policies, stranger, head, port)
        for end in (submitter, operator):
            assert is_allowed(policies, end, head, port) == (port == 8265)
            assert not is_allowed(policies, end, worker, port) or (end, port) == (operator, 8265)
    for end in (head, worker, submitter):
        assert is_allowed(policies, end, dns, 53, "UDP") and is_allowed(policies, end, dns, 53)
        assert not is_allowed(policies, end, metadata, 80)
        assert not is_allowed(policies, end, metadata, 443)
        assert not is_allowed(policies, end, store, 25)
        assert is_allowed(policies, end, store, 443) == (end is not submitter)
        assert not is_allowed(policies, stranger, end, 22)
    # only the cluster that scales calls the API server
    assert is_allowed(policies, head, store, 6443) == ("cluster" in files)
    assert not is_allowed(policies, worker, store, 6443)


def test_exit_codes_tell_kubernetes_whether_to_try_again():
    (job,) = documents(INFRA / "kuberay/submit.yaml")
    rules = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in reversed(job["spec"]["podFailurePolicy"]["rules"])
        if "onExitCodes" in rule
    }
    final = {errors.ConfigError, errors.DivergedError, errors.DataError, errors.CheckpointError}
    assert set(rules["FailJob"]) == {error.exit_code for error in final}
    assert rules["Ignore"] == [errors.Stopped.exit_code]
    assert not {errors.ClusterError.exit_code, errors.RegistryError.exit_code} & set(
        rules["FailJob"]
    )


def test_compose_file_fits_the_compose_specification():
    command = [
        str(BIN / "check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        str(INFRA / "mlflow/compose.yaml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (compose,) = documents(INFRA / "mlflow/compose.yaml")
    assert (
        compose["services"]["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
        and "ports" not in compose["services"]["postgres"]
    )
    assert all(
        "no-new-privileges:true" in service["security_opt"]
        for service in compose["services"].values()
    )


def test_ray_up_file_fits_ray_s_own_schema():
    (cluster,) = documents(INFRA / "ray-up/cluster.yaml")
    schema = json.loads(
        (Path(find_spec("ray").origin).parent / "autoscaler/ray-schema.json").read_text()
    )
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_worker": 2}, schema)
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)


def test_dockerfile_has_no_faults_that_hadolint_knows():
    done = subprocess.run(
        [str(BIN / "hadolint"), str(INFRA / "docker/Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    text = (INFRA / "docker/Dockerfile").read_text()
    assert text.rindex("USER 1000") > text.rindex("RUN ") and "RAY_AUTH_MODE=token" in text
    installs = re.findall(r"pip install (.*(?:\\\n.*)*)", text)
    assert (
        all("--require-hashes" in line or "--no-build-isolation ." in line for line in installs)
        and len(installs) == 4
    )


def test_the_lock_has_hashes_of_every_package_and_the_sections_of_the_image():
    lock = (ROOT / "requirements-lock.txt").read_text()
    for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]:
        name, version = line.split("==")
        assert f"\n{canonicalize_name(name)}=={version} \\\n    --hash=sha256:" in lock, (
            f"{line}: run python -m infra.lock"
        )
    assert re.findall(r"^# (\w+)$", lock, re.MULTILINE) == [
        "build",
        "torch",
        "image",
        "development",
    ]
