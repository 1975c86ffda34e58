"""Looks at what is deployed: each check is a function; one that fails says what it saw."""

import pathlib
import re
import shutil
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
    for wrong in ("vault.auth=password", "vault.address=vault", "keyName=-x", "env.FOO=1", "gate.timeout=soon", "minio.replicas=0", "vault.pins=a b", "vault.pins=true", "gate.drives=perhaps"):
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
        assert [(mount["mountPath"], mount["readOnly"]) for mount in data] == [("/data", True)], data
    for container in pod(render("no pins, no drives"))["initContainers"]:
        assert not {"KESWARDEN_PIN_KV", "KESWARDEN_DRIVES"} & env_of(container).keys(), env_of(container)
        assert "data" not in {mount["name"] for mount in container["volumeMounts"]}, container["volumeMounts"]
    unit_of = unit("deploy/systemd/keswarden.service")
    assert (unit_of["StateDirectory"], unit_of["StateDirectoryMode"]) == (["keswarden"], ["0700"]), unit_of


def check_where_pins_are():
    """Two tenants on one mount never share pins; without a prefix there is one tenant."""
    for values, pins in {
        (): "kv/keswarden-pins/minio",
        ("vault.kv.prefix=other",): "kv/keswarden-pins/other",
        ("vault.kv.prefix=",): "kv/keswarden-pins",
        ("vault.kv.prefix=null",): "kv/keswarden-pins",
        ("vault.kv.mount=/keys/", "vault.kv.prefix=/a/b/"): "keys/keswarden-pins/a/b",
        ("vault.pins=pins/of/minio", "vault.kv.prefix="): "pins/of/minio",
        # A plain `off` in a YAML file is false; a release whose values are reused may have none.
        ("vault.pins=off",): None,
        ("vault.pins=",): None,
        ("vault.pins=false",): None,
        ("vault.pins=null",): None,
    }.items():
        code, text = run(HELM, "template", "minio", CHART, "--kube-version", KUBERNETES, *(part for value in values for part in ("--set", value)))
        assert code == 0, (values, text)
        for container in pod(text)["initContainers"]:
            assert env_of(container).get("KESWARDEN_PIN_KV") == pins, (values, pins, env_of(container))


def notes(*values):
    """The notes as they are shown after an installation; `helm template` leaves them out, so they are rendered as a manifest."""
    with tempfile.TemporaryDirectory() as place:
        chart = shutil.copytree(CHART, pathlib.Path(place) / "chart")
        text = (chart / "templates/NOTES.txt").read_text()
        (chart / "templates/notes.yaml").write_text('{{- define "notes" -}}\n' + text + '{{- end -}}\nnotes: {{ include "notes" . | toJson }}\n')
        sets = [part for value in values for part in ("--set", value)]
        code, said = run(HELM, "template", "minio", chart, "--namespace", "tenant", "--kube-version", KUBERNETES, "--show-only", "templates/notes.yaml", *sets)
        assert code == 0, said
        return yaml.safe_load(said)["notes"]


def check_notes():
    said = notes("keyName=some-key")
    gate = pod(render("defaults"))["initContainers"][0]["name"]
    assert f"  kubectl -n tenant exec minio-0 -c {gate} -- /keswarden key create --first some-key\n" in said, said
    for words in ("only if nothing was ever sealed", "keswarden key restore --from FILE --identity IDENTITY some-key\n", "keswarden key backup"):
        assert words in said, (words, said)
    pins, run_dir, drives = "the pins at kv/keswarden-pins/minio", "the run directory", "the data volumes"
    gate_only = ("agent.enabled=false", "kes.endpoint=https://kes:7373", "kes.existingSecret=kes")
    for values, places in {
        (): {pins, run_dir, drives},
        ("vault.pins=off",): {run_dir, drives},
        ("gate.drives=false",): {pins, run_dir},
        gate_only: {pins, drives},
        (*gate_only, "vault.pins=off", "gate.drives=false"): set(),
    }.items():
        said = notes(*values)
        assert {place for place in (pins, run_dir, drives) if place in said} == places, (values, said)
        assert ("Nothing here remembers" in said) == (not places), (values, said)


def check_nobody_is_told_to_put_a_key_by_hand():
    for place in ("charts", "deploy", "docs", "README.md", "src"):
        root = pathlib.Path(place)
        for path in [root] if root.is_file() else [found for found in root.rglob("*") if found.is_file()]:
            text = path.read_text(errors="ignore")
            assert "key new | " not in text, f"{path}: a raw write knows nothing of former keys"
            # The demo plays somebody who did so years ago.
            if place in ("charts", "deploy") and path != pathlib.Path("deploy/demo/run"):
                assert "kv put" not in text, f"{path}: a raw write knows nothing of former keys"


def check_policy():
    text = pathlib.Path("deploy/vault/keswarden-policy.hcl").read_text()
    policy = dict(re.findall(r'^path "([^"]+)" *\{ capabilities = \[([^]]*)\] \}', text, re.M))
    # A pin is written once: nobody who has only these rights can move one.
    assert policy["kv/data/keswarden-pins/*"] == '"create", "read"', policy
    assert policy["kv/metadata/keswarden-pins/*"] == '"read"', policy
    assert policy["kv/data/minio/*"] == '"create", "read"', policy
    one = dict(re.findall(r'^#   path "([^"]+)" *\{ capabilities = \[([^]]*)\] \}', text, re.M))
    assert one["kv/keswarden-pins/*"] == '"create", "read"', one
    setup = pathlib.Path("deploy/vault/setup.sh").read_text()
    (made,) = set(re.findall(r"auth/approle/role/([\w-]+)", setup))
    assert set(re.findall(r"auth/approle/role/([\w-]+)", text)) == {made}, (made, text)


def check_settings_agree():
    """What the script prints, the unit's environment and the chart's defaults are one set-up."""
    printed = unit("deploy/vault/setup.sh")
    of_unit = unit("deploy/systemd/keswarden.env")
    of_chart = env_of(pod(render("defaults"))["initContainers"][0])
    for name in ("KESWARDEN_VAULT_KV_MOUNT", "KESWARDEN_VAULT_KV_PREFIX", "KESWARDEN_PIN_KV"):
        assert printed[name] == of_unit[name] == [of_chart[name]], (name, printed.get(name), of_unit.get(name), of_chart.get(name))
    for name in ("KESWARDEN_VAULT_ROLE_ID_FILE", "KESWARDEN_VAULT_SECRET_ID_FILE"):
        assert name in printed and name in of_unit and name in of_chart, name
    assert "KESWARDEN_DRIVES" not in of_unit and "#KESWARDEN_DRIVES=" in pathlib.Path("deploy/systemd/keswarden.env").read_text()


def check_first_key_under_systemd():
    """The command of README.md runs as the unit does: same user, groups, environment and state directory."""
    readme = pathlib.Path("deploy/README.md").read_text()
    (command,) = re.findall(r"^systemd-run (?:.*\\\n)*.*$", readme, re.M)
    words = command.replace("\\\n", " ").split()
    service = unit("deploy/systemd/keswarden.service")
    for word in (f"--uid={service['User'][0]}", f"--gid={service['Group'][0]}"):
        assert word in words, (word, words)
    for name in ("EnvironmentFile", "StateDirectory", "StateDirectoryMode", "SupplementaryGroups"):
        assert f"{name}={service[name][0]}" in words, (name, words)
    (key,) = unit("deploy/systemd/keswarden.env")["KESWARDEN_KEY_NAME"]
    assert words[-4:] == ["key", "create", "--first", key], words
    # The supplementary group must be there: useradd makes none beside --gid.
    assert "useradd --system --no-create-home --user-group keswarden" in readme


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
    for file in ("deploy/systemd/keswarden.service", "deploy/systemd/keswarden.env", "deploy/vault/setup.sh"):
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
    assert "ENV PATH=/" in stage, "what messages print is typed in the container"
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
