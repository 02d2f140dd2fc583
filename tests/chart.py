"""The templates of the Helm chart, made from the manifests for kustomize.

`python -m tests.chart` writes them. deploy/helm/source says which value of the chart stands where.
"""

import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.manifests import DEPLOY, Manifest, rendered

CHART = DEPLOY / "helm"

CONDITIONS = {
    "producer": ".Values.producer.enabled",
    "ask-keda": "(and .Values.producer.enabled .Values.producer.askKeda)",
    "redis": ".Values.redis.enabled",
    "monitoring": ".Values.monitoring.enabled",
    "PersistentVolumeClaim": ".Values.claim.create",
}
"""The value of the chart that a directory of deploy/ depends on, or a kind of object."""

ONLY_PLAIN, ONLY_OPENSHIFT = "(not .Values.openshift)", ".Values.openshift"
"""What an object depends on that only one of the two overlays has."""

PLAIN = "«plain»"
"""What stands before the value of a field that is in overlays/plain only."""

HASH = re.compile(r"-[24-9bcdfghkmt]{10}$")
"""What kustomize puts after the name of a map."""


def write(chart: Path) -> None:
    """Writes what the chart has of the manifests: its templates, and the files of its maps."""
    for made in [*(chart / "templates").glob("*/"), chart / "files"]:
        if made.is_dir():
            shutil.rmtree(made)
    places = {
        identity(one): path.parent.name
        for path in DEPLOY.glob("*/kustomization.yaml")
        for one in rendered(path.parent)
    }
    texts: defaultdict[Path, list[str]] = defaultdict(list)
    for manifest, platform in both_platforms():
        kind, name = identity(manifest)
        # The claim's name is a value of the chart.
        part = "base" if kind == "PersistentVolumeClaim" else places[kind, name]
        if kind == "ConfigMap":
            manifest["data"] = data(manifest, chart)
        conditions = [CONDITIONS.get(part, ""), CONDITIONS.get(kind, ""), platform]
        path = chart / "templates" / part / f"{kind.lower()}.yaml"
        texts[path].append(template(manifest, [one for one in conditions if one]))
    for path, found in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        origin = f"deploy/{path.parent.name}"
        head = f"{{{{- /* Made from {origin} by `make chart`: change it there. */ -}}}}\n"
        path.write_text(head + "---\n".join(found))


def data(manifest: Manifest, chart: Path) -> dict[str, str]:
    """What stands for the data of a map: the settings, or files, which are written too."""
    name = manifest["metadata"]["name"]
    if name == "imece":
        return {'«with include "imece.settings" . | fromYaml»': ""}
    (chart / "files" / name).mkdir(parents=True)
    for key, text in manifest["data"].items():
        (chart / "files" / name / key).write_text(text)
    return {key: f'«.Files.Get "files/{name}/{key}"»' for key in manifest["data"]}


def both_platforms() -> Iterator[tuple[Manifest, str]]:
    """The objects of deploy/helm/source for both overlays, with what each depends on."""
    with tempfile.TemporaryDirectory() as folder:
        deploy = shutil.copytree(DEPLOY, Path(folder) / "deploy")
        file = deploy / "helm" / "source" / "kustomization.yaml"
        on_plain = file.read_text()
        assert "overlays/plain\n" in on_plain
        plain = {identity(one): one for one in unhashed(rendered(file.parent))}
        file.write_text(on_plain.replace("overlays/plain", "overlays/openshift"))
        openshift = {identity(one): one for one in unhashed(rendered(file.parent))}
    for key in [*plain, *(key for key in openshift if key not in plain)]:
        if key not in openshift:
            yield plain[key], ONLY_PLAIN
        elif key not in plain:
            yield openshift[key], ONLY_OPENSHIFT
        else:
            yield merged(plain[key], openshift[key]), ""


def identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], HASH.sub("", manifest["metadata"]["name"])


def unhashed(manifests: list[Manifest]) -> list[Manifest]:
    """With every map named as before kustomize put a hash after its name."""
    text = yaml.safe_dump_all(manifests, sort_keys=False)
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap":
            text = text.replace(manifest["metadata"]["name"], identity(manifest)[1])
    return list(yaml.safe_load_all(text))


def merged(plain: Any, openshift: Any) -> Any:
    """What is in both, and with PLAIN before it what is in the first only."""
    if isinstance(plain, dict):
        assert openshift.keys() <= plain.keys(), "openshift has a field that plain has not"
        return {
            key: merged(value, openshift[key]) if key in openshift else f"{PLAIN}{value}"
            for key, value in plain.items()
        }
    if isinstance(plain, list):
        return [merged(*pair) for pair in zip(plain, openshift, strict=True)]
    assert plain == openshift, f"{plain} on plain, {openshift} on openshift: what decides?"
    return plain


class Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as blocks."""


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def template(manifest: Manifest, conditions: list[str]) -> str:
    """An object as a template of Helm's: {{ … }} where it has «…»."""
    head = {key: manifest.pop(key) for key in ("apiVersion", "kind", "metadata")}
    text = yaml.dump(
        head | manifest, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000
    )
    text = text.replace("{{", '{{ "{{" }}')
    text = "".join(f"{expanded(line)}\n" for line in text.splitlines())
    text = re.sub(r" *\{\{- end \}\}\n *\{\{- if not .Values.openshift \}\}\n", "", text)
    if not conditions:
        return text
    condition = conditions[0] if len(conditions) == 1 else f"and {' '.join(conditions)}"
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"


def expanded(line: str) -> str:
    if optional := re.fullmatch(r"( *)(?:- )?«with (.+)»: (.*)", line):
        indent, value, field = optional.groups()
        if field == "''":
            inside = [f"{indent}{{{{- toYaml . | nindent {len(indent)} }}}}"]
        else:
            inner = f"{indent}  "
            inside = [f"{indent}{field}:", f"{inner}{{{{- toYaml . | nindent {len(inner)} }}}}"]
        return "\n".join([f"{indent}{{{{- with {value} }}}}", *inside, f"{indent}{{{{- end }}}}"])
    if PLAIN in line:
        indent = line[: len(line) - len(line.lstrip())]
        field = line.replace(PLAIN, "")
        return f"{indent}{{{{- if not .Values.openshift }}}}\n{field}\n{indent}{{{{- end }}}}"
    if whole := re.fullmatch(r"(.*: )«([^»]+)»", line):
        quoted = "" if whole[2].endswith("| int") else " | quote"
        return f"{whole[1]}{{{{ {whole[2]}{quoted} }}}}"
    if part := re.fullmatch(r"(.*: )(.*«.*)", line):
        return part[1] + '"' + re.sub("«(.+?)»", r"{{ \1 }}", part[2]) + '"'
    return line


if __name__ == "__main__":
    write(CHART)
