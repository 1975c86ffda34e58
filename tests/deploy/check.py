"""Looks at what is deployed: each check is a function; one that fails says what it saw."""

import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

PEERS = pathlib.Path(sys.argv[1])
HELM, KUBECONFORM = PEERS / "bin/helm", PEERS / "bin/kubeconform"
CHART = "charts/keswarden"
KUBERNETES = "1.32.0"
VARIANTS = {
    "defaults": [],
    "kubernetes login": ["--set", "vault.auth=kubernetes"],
    "gate only": ["--set", "agent.enabled=false", "--set", "kes.endpoint=https://kes:7373", "--set", "kes.existingSecret=kes"],
    "one server, a deadline": ["--set", "minio.replicas=1", "--set", "gate.timeout=10m", "--set", "podDisruptionBudget.enabled=false"],
    "no events": ["--set", "events=false"],
    "no pins, no drives": ["--set", "vault.pins=", "--set", "gate.drives=false"],
    "pins elsewhere": ["--set", "vault.pins=pins/of/minio", "--set", "vault.kv.prefix="],
    "more settings": ["--set", "env.KESWARDEN_LOG_FORMAT=json", "--set", "vault.namespace=team", "--set", "minio.storage.storageClassName=fast"],
}


def run(*command, text=None):
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def render(variant):
    code, text = run(HELM, "template", "minio", CHART, "--namespace", "minio", "--kube-version", KUBERNETES, *VARIANTS[variant])
    assert code == 0, text
    return text


def objects(text):
    return [found for found in yaml.safe_load_all(text) if found]


def pod(text):
    (found,) = [found for found in objects(text) if found["kind"] == "StatefulSet"]
    return found["spec"]["template"]["spec"]


def env_of(container):
    return {row["name"]: row.get("value") for row in container.get("env", [])}


def conforms(text):
    location = f"{PEERS}/schemas/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    code, said = run(KUBECONFORM, "-strict", "-summary", "-kubernetes-version", KUBERNETES, "-schema-location", location, "-", text=text)
    assert code == 0 and "Skipped: 0" in said, said


def check_lint():
    code, said = run(HELM, "lint", "--strict", CHART)
    assert code == 0, said


def check_schema_refuses_nonsense():
    for wrong in ("vault.auth=password", "vault.address=vault", "keyName=-x", "env.FOO=1", "gate.timeout=soon", "minio.replicas=0", "vault.pins=a b", "gate.drives=perhaps"):
        code, said = run(HELM, "template", CHART, "--kube-version", KUBERNETES, "--set", wrong)
        assert code != 0, f"{wrong} was accepted"
    code, said = run(HELM, "template", CHART, "--kube-version", KUBERNETES, "--set", "agent.enabled=false")
    assert code != 0 and "kes.endpoint" in said, said


def check_conformance():
    for variant in VARIANTS:
        conforms(render(variant))


def check_names_are_unique():
    for variant in VARIANTS:
        spec = pod(render(variant))
        containers = spec["initContainers"] + spec["containers"]
        names = [container["name"] for container in containers]
        assert len(set(names)) == len(names), names
        volumes = {volume["name"] for volume in spec["volumes"]} | {"data"}
        for container in containers:
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(paths)) == len(paths), (variant, container["name"], paths)
            missing = {mount["name"] for mount in container["volumeMounts"]} - volumes
            assert not missing, (variant, container["name"], missing)


def check_order():
    spec = pod(render("defaults"))
    gate, agent = spec["initContainers"]
    assert (gate["name"], gate["args"], gate.get("restartPolicy")) == ("keswarden-init", ["init"], None), gate
    assert (agent["name"], agent["args"], agent["restartPolicy"]) == ("keswarden", ["run"], "Always"), agent
    assert [container["name"] for container in spec["containers"]] == ["minio"]
    paths = {probe: agent[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}, paths
    gate_only = pod(render("gate only"))
    assert [container["name"] for container in gate_only["initContainers"]] == ["keswarden-init"]


def check_keys_are_remembered_by_default():
    for container in pod(render("defaults"))["initContainers"]:
        env = env_of(container)
        assert env["KESWARDEN_PIN_KV"] == "kv/keswarden-pins/minio" and env["KESWARDEN_DRIVES"] == "/data", env
        data = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
        assert data and all(mount["readOnly"] for mount in data), data
    for variant, pins in (("pins elsewhere", "pins/of/minio"), ("no pins, no drives", None)):
        for container in pod(render(variant))["initContainers"]:
            assert env_of(container).get("KESWARDEN_PIN_KV") == pins, (variant, env_of(container))
    # Two tenants on one mount never share pins; without a prefix there is one tenant.
    for prefix, pins in (("other", "kv/keswarden-pins/other"), ("", "kv/keswarden-pins")):
        code, text = run(HELM, "template", "minio", CHART, "--kube-version", KUBERNETES, "--set", f"vault.kv.prefix={prefix}")
        assert code == 0, text
        assert env_of(pod(text)["initContainers"][0])["KESWARDEN_PIN_KV"] == pins
    policy = pathlib.Path("deploy/vault/keswarden-policy.hcl").read_text()
    assert 'path "kv/data/keswarden-pins/*"     { capabilities = ["create", "read"] }' in policy
    assert "StateDirectory=keswarden" in pathlib.Path("deploy/systemd/keswarden.service").read_text()


def check_nobody_is_told_to_put_a_key_by_hand():
    for place in ("charts", "deploy", "docs", "README.md", "src"):
        root = pathlib.Path(place)
        for path in [root] if root.is_file() else [found for found in root.rglob("*") if found.is_file()]:
            assert "key new | " not in path.read_text(errors="ignore"), f"{path}: a raw write knows nothing of former keys"


def check_minio_sees_three_files():
    (minio,) = pod(render("defaults"))["containers"]
    seen = {mount.get("subPath") for mount in minio["volumeMounts"] if mount["name"] == "run"}
    assert seen == {"ca.crt", "client.crt", "client.key"}, seen
    assert all(mount["readOnly"] for mount in minio["volumeMounts"] if mount["name"] == "run")
    env = env_of(minio)
    for name in ("MINIO_KMS_KES_CERT_FILE", "MINIO_KMS_KES_KEY_FILE", "MINIO_KMS_KES_CAPATH"):
        assert env[name] in {mount["mountPath"] for mount in minio["volumeMounts"]}, (name, env[name])
    assert env["MINIO_KMS_KES_ENDPOINT"] == "https://127.0.0.1:7373"


def check_minio_values_are_the_same_on_every_node():
    for variant in VARIANTS:
        (minio,) = pod(render(variant))["containers"]
        for row in minio["env"]:
            assert "valueFrom" not in row and row["value"], row


def check_no_secret_is_in_the_environment():
    for variant in VARIANTS:
        spec = pod(render(variant))
        for container in spec["initContainers"] + spec["containers"]:
            for name, value in env_of(container).items():
                secret = re.search(r"(SECRET|TOKEN|PASSWORD|ROLE_ID|API_KEY|ACCESS_KEY)", name)
                assert not secret or name.endswith("_FILE"), (container["name"], name, value)


def check_ours_are_restricted():
    for variant in VARIANTS:
        for container in pod(render(variant))["initContainers"]:
            context = container["securityContext"]
            assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"], context
            assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}, context


def check_settings_exist():
    known = set(re.findall(r'"(KESWARDEN_[A-Z_]+)"', pathlib.Path("src/config/vars.rs").read_text()))
    assert len(known) > 40, known
    used = set()
    for variant in VARIANTS:
        used |= set(re.findall(r"KESWARDEN_[A-Z_]+", render(variant)))
    for file in ("deploy/systemd/keswarden.service", "deploy/systemd/keswarden.env"):
        used |= set(re.findall(r"KESWARDEN_[A-Z_]+", pathlib.Path(file).read_text()))
    unknown = {name for name in used if name not in known and name.removesuffix("_FILE") not in known}
    assert not unknown, unknown


def check_plain_manifests_are_the_chart():
    code, rendered = run("tests/deploy/render")
    assert code == 0, rendered
    text = pathlib.Path("deploy/kubernetes/minio.yaml").read_text()
    assert text == rendered, "run: tests/deploy/render > deploy/kubernetes/minio.yaml"
    conforms(text)


def unit(path):
    rows = {}
    for line in pathlib.Path(path).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            rows.setdefault(name, []).append(value)
    return rows


def check_units():
    agent, minio = unit("deploy/systemd/keswarden.service"), unit("deploy/systemd/minio.service.d/keswarden.conf")
    for name, value in {
        "Type": "notify", "Before": "minio.service", "RuntimeDirectory": "keswarden", "RuntimeDirectoryPreserve": "yes",
        "TimeoutStartSec": "infinity", "Restart": "always", "LimitCORE": "0", "NoNewPrivileges": "yes",
    }.items():
        assert agent[name] == [value], (name, agent.get(name))
    assert (minio["Wants"], minio["After"]) == (["keswarden.service"], ["keswarden.service"]), minio
    for stopping in ("Requires", "BindsTo", "PartOf", "Requisite"):
        assert stopping not in minio and stopping not in agent, f"{stopping} would stop MinIO with the agent"


def check_units_verify():
    """By systemd itself where it is installed; the checks above hold everywhere."""
    code, _ = run("sh", "-c", "command -v systemd-analyze")
    if code != 0:
        print("    systemd is not installed here: the units were looked at, not verified by it")
        return
    with tempfile.TemporaryDirectory() as place:
        text = pathlib.Path("deploy/systemd/keswarden.service").read_text().replace("/usr/local/bin/keswarden", "/bin/true")
        file = pathlib.Path(place) / "keswarden.service"
        file.write_text(text)
        code, said = run("systemd-analyze", "verify", "--man=no", file)
        ours = [line for line in said.splitlines() if "keswarden.service" in line]
        assert not ours, ours


def check_dockerfile():
    text = pathlib.Path("Dockerfile").read_text()
    stage = text.split("FROM scratch")[1]
    assert "USER 65532:65532" in stage and 'ENTRYPOINT ["/keswarden"]' in stage and "RUN" not in stage, stage
    ignored = pathlib.Path(".dockerignore").read_text().split()
    manifest = pathlib.Path("Cargo.toml").read_text()
    for path in re.findall(r'^path = "([^"]+)"', manifest, re.M):
        kept = any(f"!{part}" in ignored for part in [path, *map(str, pathlib.Path(path).parents)])
        assert kept, f"{path} is in Cargo.toml, but not in the build context"


passed = failed = 0
for name, check in list(globals().items()):
    if name.startswith("check_"):
        try:
            check()
            passed += 1
            print(f"  ok      {name[6:].replace('_', ' ')}")
        except AssertionError as error:
            failed += 1
            print(f"  FAILED  {name[6:].replace('_', ' ')}: {error}")
print(f"deploy: {passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
